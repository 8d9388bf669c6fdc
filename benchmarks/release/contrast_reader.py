"""How often is the contrast of a scan read right? Fit the reader on synthetic heads, and test it on real scans.

    python -m benchmarks.release.contrast_reader draw --run runs/contrast    (some 10 minutes on one core)
    python -m benchmarks.release.contrast_reader fit  --run runs/contrast    (into maediff/working/contrast.json)
    python -m benchmarks.release.contrast_reader test --json benchmarks/results/contrast_reader.json

The heads of ../shared/data/head_labels are drawn as T1-, T2- and FLAIR-like scans with lesions, tumours as large as a
lobe, weak contrast of grey and white matter, bias field, noise, thick slices and brain masks that are too wide, too
narrow or hold a part of the slices; the last two heads validate, the others teach. No real scan is used but to test,
with the masks of the data sets, or those of `new_masks` with `--masks DIR`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.common import Benchmark, say, shared_data
from maediff.data.cases import find_cases
from maediff.extraction.synthetic import draw, true_brain
from maediff.heads.contrast import Kind
from maediff.heads.labels import find_heads, read_head
from maediff.typing import BoolArray
from maediff.volume import read_mask, read_nifti
from maediff.working.contrast import COEFFICIENTS, features, read_contrast

BENCHMARK = Benchmark(__file__, __doc__, page="docs/prepare.md", results=("contrast_reader.json",))
SEED = 78
SPACING_MM, SHAPE = 3.0, (64, 80, 64)
DRAWN: tuple[Kind, ...] = ("t1", "t2", "flair")
MASKS = 2  # brain masks per scan
SLICE_AXES = (0.3, 0.1, 0.6)
"""How often slices are sagittal, coronal and axial."""
PARTS = 0.35
"""Share of masks that hold a part of the slices: slabs, and brains without the slices that show a tumour."""
HIDDEN, REGULARISATION = 16, 1.0  # of 0.3, 1, 3 and 6 the best on the heads that validate
HELD_OUT = 2
"""The last heads validate."""
SETS = (
    ("ixi_t1", None, "t1"),
    ("lgg_flair", None, "flair"),
    *(("mslub", kind, kind) for kind in ("t1", "t2", "flair")),
)


def draw_samples(options: argparse.Namespace) -> dict[str, Any]:
    """Draw synthetic scans and store their features."""
    brains = [true_brain(read_head(file)) for file in find_heads(options.data / "head_labels")]
    options.run.mkdir(parents=True, exist_ok=True)
    rows, kinds, validation = [], [], []
    for k in range(options.samples):
        rng = np.random.default_rng((SEED, k))
        kind = DRAWN[k % len(DRAWN)]
        index = int(rng.integers(len(brains)))
        scan = draw(brains[index], rng, SPACING_MM, SHAPE, kind)
        for _ in range(MASKS):  # real masks are too wide or too narrow, some without fluid
            share = scan.tissue if rng.random() < 0.4 else scan.brain
            mask = ndimage.gaussian_filter(share, rng.uniform(0.4, 1.6)) > rng.uniform(0.08, 0.9)
            if mask.sum() * SPACING_MM**3 > 400_000:
                axis = int(rng.choice(3, p=SLICE_AXES))
                if rng.random() < PARTS:
                    _cut(np.moveaxis(mask, axis, 0), rng)
                apart = np.full(3, SPACING_MM) + (np.arange(3) == axis)  # slices lie across the longest side
                rows.append(features(scan.image, mask, tuple(apart)))
                kinds.append(DRAWN.index(kind))
                validation.append(index >= len(brains) - HELD_OUT)
    np.savez(options.run / "features.npz", rows=rows, kinds=kinds, validation=validation)
    return {"samples": len(rows)}


def _cut(slices: BoolArray, rng: np.random.Generator) -> None:
    """Cut a mask (S, H, W) to a run of its slices, or cut that run out, in place."""
    held = np.flatnonzero(slices.any(axis=(1, 2)))
    length = int(rng.uniform(0.3, 0.7) * len(held))
    start = int(rng.integers(len(held) - length + 1))
    run = np.zeros(len(held), bool)
    run[start : start + length] = True
    slices[held[run if rng.random() < 0.5 else ~run]] = False


def fit(options: argparse.Namespace) -> dict[str, Any]:
    """Fit the classifier and write its coefficients."""
    from sklearn.neural_network import MLPClassifier

    stored = np.load(options.run / "features.npz")
    rows, kinds, held = stored["rows"], stored["kinds"], stored["validation"]
    mean, spread = rows[~held].mean(0), rows[~held].std(0) + 1e-6
    scaled = np.clip((rows - mean) / spread, -3, 3)
    net = MLPClassifier((HIDDEN,), activation="tanh", alpha=REGULARISATION, max_iter=3000, random_state=0)
    net.fit(scaled[~held], kinds[~held])
    layers = [
        np.vstack([weights, bias]).T.round(5).tolist()
        for weights, bias in zip(net.coefs_, net.intercepts_, strict=True)
    ]
    coefficients = {"mean": mean.round(6).tolist(), "spread": spread.round(6).tolist()}
    coefficients |= {"hidden": layers[0], "output": layers[1]}
    facts = {
        "what": "contrast reader of maediff.working.contrast, fitted on synthetic heads",
        "attribution": "SynthSeg label maps, Apache-2.0, Billot et al., Medical Image Analysis 2023",
        "samples": int((~held).sum()),
        "accuracy_unseen_heads": round(float(net.score(scaled[held], kinds[held])), 4),
    }
    COEFFICIENTS.write_text(json.dumps(facts | {"fit": coefficients}) + "\n")
    say(f"{COEFFICIENTS}: {facts}")
    return facts


def test(options: argparse.Namespace) -> dict[str, Any]:
    """Read the contrast of every real scan there is."""
    result: dict[str, Any] = {}
    for name, channel, truth in SETS:
        folder = shared_data(name, options.data)
        if folder is None:
            continue
        found: Counter[str] = Counter()
        for case in find_cases(folder, channel=channel):
            volume = read_nifti(case.image)
            new = options.masks / Path(str(case.mask)).name if options.masks else None
            mask = read_mask(new if new and new.is_file() else str(case.mask), volume, "brain mask")
            reading = read_contrast(volume.data, mask, volume.spacing_mm)
            found[reading.kind] += 1
            if reading.kind != truth:
                say(f"{case.id}: {reading}")
        label = name if channel is None else f"{name}_{channel}"
        result[label] = {"truth": truth, "read": dict(found)}
        say(f"{label}: {result[label]}")
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--run", type=Path, default=Path("runs/contrast"), help="folder of the features (%(default)s)")
    parser.add_argument("--samples", type=int, default=900, help="synthetic scans to draw (%(default)s)")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="better brain masks to test with")


STEPS = {"draw": draw_samples, "fit": fit, "test": test}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(lambda options: STEPS[options.step](options), add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
