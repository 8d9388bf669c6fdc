"""What does a side network gain that sees a second image: the edges of the scan, or another contrast of the patient?

    python -m benchmarks.quality.guides --steps 200 --every 50 --scans 1 --subjects 8 \
      --json benchmarks/results/guides.json

The packaged model stays frozen; side networks (`maediff adapt --kind controlnet|t2i --guide edges|CONTRAST`) are
trained on pairs of contrasts of healthy brains, drawn from label maps of heads (`maediff synth --also`), with
pseudo-lesions. A scan and its guide are FLAIR and T1, T2 and T1, or T1 and FLAIR, in training and in the test. Tests:
two MS patients, and synthetic scans of label maps that no training saw, with exact truth; axial slices. AUPRC of the
map, the absolute residual of healthy brain, and sharpness: the mean slope of the reconstruction in healthy brain,
divided by that of the scan (1 is as sharp). `omega` is the weight of the side network; 0 is the base.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from benchmarks.common import Benchmark, say, table
from benchmarks.quality.patients import MASKS_AS_GIVEN
from benchmarks.quality.scans import HELD_OUT, Scan, healthy_l1, held_out, scans, with_sign
from maediff.data.head_cohort import synthesise_heads
from maediff.diffusion.noise import generator
from maediff.evaluation import voxel_metrics
from maediff.heads.contrast import Kind
from maediff.heads.headset import split_heads
from maediff.heads.scan import draw_scan
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.jobs.adapt import adapt_model
from maediff.tables import read_table, write_table
from maediff.training.tune import Schedule
from maediff.volume import Volume, from_image, read_nifti, write_like

BENCHMARK = Benchmark(__file__, __doc__, page="docs/adapters.md", results=("guides.json",))
PAIRS: tuple[tuple[Kind, Kind], ...] = (("flair", "t1"), ("t2", "t1"), ("t1", "flair"))
"""A scan's contrast and that of its guide."""
SIDES: tuple[tuple[Literal["controlnet", "t2i"], str], ...] = tuple(
    itertools.product(("controlnet", "t2i"), ("edges", "second"))
)
AXIAL = "infer.orientations=[axial]"
COLUMNS = ("image_scan", "image_second", "mask", "label", "subject", "split")
METRICS = ("auprc", "sharpness", "healthy_l1")
Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """A scan with its truth, and another contrast of the same brain on the same grid."""

    scan: Scan
    second: Volume


def cohort(folder: Path, data: Path, subjects: int) -> Path:
    """Draw healthy brains in all pairs of contrasts, and write one table with columns for scan and second contrast.

    Args:
        folder: Where to write; what is there already is used again.
        data: Folder of label maps.
        subjects: Per pair.
    """
    into = folder / "cases.csv"
    if into.is_file():
        return into
    learned, _ = split_heads(data / "head_labels", HELD_OUT)
    heads = folder / "heads"
    heads.mkdir(parents=True, exist_ok=True)
    for path in learned:
        link = heads / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    rows = []
    for number, (kind, second) in enumerate(PAIRS):
        made = synthesise_heads(
            folder / kind, heads, subjects=subjects, modality=kind, also=(second,), seed=number, healthy_only=True
        )
        for found in read_table(made).rows:
            paths = [made.parent / found[name] for name in (f"image_{kind}", f"image_{second}", "mask")]
            like, label = read_nifti(paths[0]), folder / kind / f"{found['subject']}_label.nii.gz"
            write_like(label, np.zeros(like.data.shape, bool), like, np.uint8)  # known to be healthy: not scored first
            named = [str(path.resolve()) for path in (*paths, label)]
            values = (*named, f"{kind}-{found['subject']}", found["split"])
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    write_table(into, rows, COLUMNS)
    return into


def pairs(data: Path, count: int) -> Iterator[Pair]:
    """Read the scans of the MS patients, and draw `count` synthetic ones for each contrast and kind of lesion."""
    found = {(scan.contrast, scan.group.split()[-1]): scan for scan in scans("mslub", data)}
    for kind, second in PAIRS:
        for (contrast, patient), scan in found.items():
            if contrast == kind:
                yield Pair(scan, found[second, patient].volume)
    source = held_out(data)
    for (kind, second), lesion, index in itertools.product(PAIRS, ("tumour", "ms"), range(count)):
        rng, head = generator("guides", kind, lesion, index), source.heads[index % len(source.heads)]
        drawn = draw_scan(head, source.masks, rng, kind=kind, also=(second,), lesion=lesion)
        images = (drawn.image, *drawn.others)
        volume, other = (from_image(nib.nifti1.Nifti1Image(image, drawn.affine)) for image in images)
        name = f"heads {kind} {lesion}"
        yield Pair(Scan(name, f"{name} {index}", kind, volume, drawn.brain, drawn.lesion), other)


def slope(values: Map, brain: Mask, spacing_mm: Sequence[float]) -> float:
    """Average the gradient's magnitude within axial slices over the brain, per mm.

    Args:
        values: (X, Y, Z) image or reconstruction.
        brain: (X, Y, Z) bool, where it is averaged.
        spacing_mm: Of the voxels.
    """
    along = [np.gradient(values.astype(np.float64), spacing_mm[axis], axis=axis) for axis in (0, 1)]
    return float(np.hypot(*along)[brain].mean())


def scored(predictor: Predictor, pair: Pair, *, guided: bool) -> dict[str, float]:
    """Score a scan: AUPRC, sharpness of the healthy reconstruction, absolute residual of healthy brain."""
    scan = pair.scan
    told, healthy = with_sign(predictor, scan.contrast), scan.brain & ~scan.label
    ready = told.prepare((scan.volume, pair.second) if guided else scan.volume, scan.brain)
    result = told.score(ready)
    drawn, seen = (slope(image, healthy, scan.volume.spacing_mm) for image in (result.reconstruction, scan.volume.data))
    return {
        "auprc": voxel_metrics(result.anomaly, scan.brain, scan.label, None).auprc,
        "sharpness": drawn / seen,
        "healthy_l1": healthy_l1(scan, ready.prepared.scale, result.reconstruction),
    }


def models(options: argparse.Namespace) -> Iterator[tuple[str, Predictor, bool]]:
    """Make the models to compare: name, predictor, and whether it takes the second contrast."""
    yield "base", load_model(options.model, options.device, (AXIAL,), accept=MASKS_AS_GIVEN), False
    cases = cohort(options.work / "pairs", options.data, options.subjects)
    for kind, guide in SIDES:
        name = f"{kind}, {guide}"
        folder = options.work / f"{kind}-{guide}"
        if not (folder / "adapter.safetensors").is_file():
            schedule = Schedule(max_steps=options.steps, lr=options.lr, every=options.every)
            found = adapt_model(
                options.model,
                cases,
                folder,
                kind=kind,
                guide=guide,
                schedule=schedule,
                seed=options.seed,
                device=options.device,
                channel="scan",
            )
            say(f"{name}: {found.tuned}")
        for omega in options.omega:
            settings = (AXIAL, f"structure.omega=[{omega}]")
            predictor = load_model(folder, options.device, settings, accept=MASKS_AS_GIVEN)
            yield f"{name}, omega {omega:g}", predictor, guide != "edges"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train the side networks, score everything, and print a table per metric."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    tests = list(pairs(options.data, options.scans))
    for name, predictor, guided in models(options):
        groups = found.setdefault(name, {})
        for pair in tests:
            row = scored(predictor, pair, guided=guided)
            groups.setdefault(pair.scan.group, []).append(row)
            say(f"{name}: {pair.scan.name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    means = {
        name: {
            group: {key: float(np.mean([row[key] for row in rows])) for key in METRICS} | {"scans": len(rows)}
            for group, rows in groups.items()
        }
        for name, groups in found.items()
    }
    for key in METRICS:
        header = [key, *next(iter(means.values()))]
        print(table(header, [[name, *(row[key] for row in groups.values())] for name, groups in means.items()]))
        print()
    return means


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="heads", metavar="MODEL", help="base (%(default)s)")
    parser.add_argument("--subjects", type=int, default=12, help="healthy brains per pair to learn (%(default)s)")
    parser.add_argument("--scans", type=int, default=2, help="synthetic scans per kind to test on (%(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="most training steps (%(default)s)")
    parser.add_argument("--every", type=int, default=50, help="steps between validations (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (%(default)g)")
    parser.add_argument("--omega", type=float, nargs="+", default=[1.0], help="weights of the side network (1)")
    parser.add_argument("--seed", type=int, default=0, help="of samples, start and held-out subjects")
    parser.add_argument("--work", type=Path, default=Path("runs/guides"), metavar="DIR", help="models (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, _options, arguments)


if __name__ == "__main__":
    sys.exit(main())
