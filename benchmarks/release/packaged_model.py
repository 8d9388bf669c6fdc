"""The packaged model `heads`, made from label maps of whole heads alone, by one command that can be interrupted.

    python -m benchmarks.release.packaged_model train  --run runs/heads             (hours on 2 cores; resumable)
    python -m benchmarks.release.packaged_model export --run runs/heads --healthy TABLE… --tumour-free TABLE…
    python -m benchmarks.release.packaged_model calibrate --run runs/heads --healthy TABLE… --tumour-free TABLE…
    python -m benchmarks.release.packaged_model check  --run runs/heads --json benchmarks/results/heads_healthy.json
        (--real: on the real scans alone)

`train` trains the preset `heads` in five stages: axial slices, then slices of all orientations, then, from the mean of
both stages' weights, slices of a finer grid, twice, the second time from a raised learning rate, then the finest one.
`export` halves the precision of the last stage's weights, writes the model to `maediff/weights/heads`, and sets its
thresholds, apart by contrast and for stacks and volumes, on healthy scans: synthetic ones of held-out heads, real ones
of tables of healthy scans (`--healthy`), and the slices free of tumour of tables with lesion labels (`--tumour-free`).
Every second scan is kept back: `check` tells what the thresholds let through there. `calibrate` sets the thresholds
anew and leaves the packaged weights as they are.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.common import ROOT, Benchmark, lesion_shapes, say, table
from maediff.config import HeadsConfig, load_config, override
from maediff.data.cases import find_cases
from maediff.diffusion.noise import generator
from maediff.errors import InputError
from maediff.files import write_text
from maediff.heads.contrast import Kind
from maediff.heads.headset import read_head_set, split_heads
from maediff.heads.scan import draw_scan
from maediff.inference.load import load_model
from maediff.jobs.calibrate import calibrate_model
from maediff.jobs.train import train
from maediff.model_folder import load_model_folder, save_model
from maediff.typing import Array
from maediff.volume import read_mask, read_nifti
from maediff.working.contrast import LESION_SIGNS, read_contrast

BENCHMARK = Benchmark(__file__, __doc__, page="docs/packaged-model.md", results=("heads_healthy.json",))
PACKAGED = ROOT / "maediff" / "weights" / "heads"
AXIAL, TURNED, MEAN, FINE, AGAIN, LAST = "axial", "turned", "mean", "fine", "again", "last"
"""Folders of the five stages, and of the mean of the first two's weights."""
_FINE = ("data.spacing_mm=1.5", "data.size=[112,128]", "partition.window=72", "partition.stride=56")
_FINEST = ("data.spacing_mm=1.25", "data.size=[128,160]", "partition.window=88", "partition.stride=72")
_WHOLE = ("data.size=[160,160]", "partition.window=160", "partition.stride=160")
"""The packaged model restores a slice in one window: better than in four, and in a third of the time."""
STAGES: dict[str, tuple[str, ...]] = {
    AXIAL: ("heads.orientations=[axial]",),
    TURNED: ("train.lr=6e-4", "train.max_steps=3600"),
    FINE: ("train.lr=6e-4", "train.max_steps=4400", "train.seed=2", *_FINE),
    AGAIN: ("train.lr=6e-4", "train.max_steps=3800", "train.seed=3", *_FINE),
    LAST: ("train.lr=6e-4", "train.max_steps=2800", "train.seed=4", *_FINEST),
}
HEALTHY_KINDS: tuple[Kind, ...] = ("t1", "t2", "flair")
HEALTHY_SCANS = 24
"""Synthetic healthy scans per contrast and form that a threshold is set on, and as many that it is checked on."""
SPACINGS_MM: dict[str, tuple[float, float]] = {"volume": (1.0, 2.0), "stack": (1.0, 5.0)}
"""In-plane spacing, and distance of slices, of the synthetic scans of each form."""
SYNTHETIC = "synthetic"
MIN_VOXELS = 20_000
"""Brain voxels that the slices free of lesions must hold."""


def train_model(options: argparse.Namespace) -> dict[str, Any]:
    """Train the preset `heads` stage by stage, going on where an earlier call stopped."""
    run = options.run
    shapes = [f"heads.{name}={folder}" for name, folder in lesion_shapes(options.data).items()]
    starts = {TURNED: run / AXIAL / "model", FINE: run / MEAN, AGAIN: run / FINE / "model", LAST: run / AGAIN / "model"}
    for name, overrides in STAGES.items():
        if (run / name / "model" / "config.yaml").is_file():
            continue
        if name == FINE:
            write_mean(run / MEAN, run / AXIAL / "model", run / TURNED / "model")
        start = [f"train.init={starts[name]}"] if name in starts else []
        train(
            load_config("heads", [*shapes, "train.workers=1", *overrides, *start, *options.overrides]),
            options.data / "head_labels",
            run / name,
            resume=True,
            device=options.device,
            on_progress=lambda now: say(str(now)),
        )
    return {"model": str(run / LAST / "model")}


def write_mean(folder: Path, first: Path, second: Path) -> None:
    """Write a model whose weights are the mean of two, with the configuration of the second.

    Each of the two stages is better on some contrasts, and their mean is close to the better one on each
    (docs/packaged-model.md).
    """
    stored, other = load_model_folder(second), load_model_folder(first).weights
    mean = {name: (other[name] + value) / 2 for name, value in stored.weights.items()}
    save_model(folder, mean, stored.config, None, CARD)


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write the packaged model and set its thresholds."""
    stored = load_model_folder(options.run / LAST / "model")
    config = override(stored.config, ["train.init=null", *_WHOLE, *options.overrides])
    config = config.model_copy(update={"heads": config.heads.model_copy(update=_NO_PATHS)})
    weights = {name: value.half() for name, value in stored.weights.items()}
    save_model(PACKAGED, weights, config, None, CARD)
    return {"size_mib": (PACKAGED / "model.safetensors").stat().st_size / 2**20, **calibrate(options)}


_NO_PATHS = {"white_matter_masks": None, "lesion_masks": None}  # of the machine that trained, no part of a model


def calibrate(options: argparse.Namespace) -> dict[str, Any]:
    """Set the thresholds of the packaged model on every second healthy scan."""
    tables = write_healthy(options)
    found = calibrate_model(PACKAGED, tables["calibration"], device=options.device, on_case=say)
    return {"scans": found.n_scans, "thresholds": found.promises()}


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Tell what the packaged thresholds let through on healthy scans that they were not set on."""
    predictor = load_model(PACKAGED, options.device)
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    wrong: dict[tuple[str, str], int] = defaultdict(int)
    for case in find_cases(options.run / "healthy" / "check.csv"):
        if options.real and SYNTHETIC in case.subject:
            continue
        result = predictor.predict(case.image, case.mask)
        kind = case.subject.split("-")[0]
        group = kind, result.form
        wrong[group] += result.contrast != kind
        mask, brain = result.anomaly_mask, result.brain_mask
        if mask is not None:
            shares[group].append(float(mask[brain].mean()))
        say(f"{case.id}: {result.form}, read as {result.contrast}, {shares[group][-1]:.2%} flagged")
    rows = [
        {
            "contrast": kind,
            "form": form,
            "scans": len(values),
            "read_as_another": wrong[kind, form],
            "flagged_per_million": 1e6 * float(np.mean(values)),
            "flagged_ml_per_litre": 1e3 * float(np.mean(values)),
            "promised_per_million": 1e6 * predictor.config.score.false_positive_rate,
        }
        for (kind, form), values in sorted(shares.items())
    ]
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    return {"rows": rows}


def write_healthy(options: argparse.Namespace) -> dict[str, Path]:
    """Write healthy scans and two tables of them, `calibration` and `check`, each with every second scan of a kind.

    Scans whose contrast is read such that lesions have the other sign, as happens where slices are missing, are no part
    of `calibration`: their maps are not those of their contrast.

    Raises:
        InputError: A table of healthy scans holds scans with a lesion label, or one of tumour-free slices none.
    """
    folder = options.run / "healthy"
    folder.mkdir(parents=True, exist_ok=True)
    listed = [*_synthetic(options, folder), *_real(options), *_tumour_free(options, folder)]
    tables = {"calibration": folder / "calibration.csv", "check": folder / "check.csv"}
    for start, path in enumerate(tables.values()):
        rows = [row for row in listed[start::2] if path.stem == "check" or not _wrong_sign(row)]
        write_text(path, "\n".join(["image,mask,subject", *(",".join(map(str, row)) for row in rows)]) + "\n")
    return tables


Row = tuple[Path, Path, str]


def _wrong_sign(row: Row) -> bool:
    """Check whether a scan's contrast is read such that lesions have the other sign."""
    image, mask, name = row
    scan = read_nifti(image)
    reading = read_contrast(scan.data, read_mask(str(mask), scan, "brain mask"), scan.spacing_mm)
    wanted = {str(kind): sign for kind, sign in LESION_SIGNS.items()}[name.split("-")[0]]
    if reading.lesion_sign in {wanted, "abs"}:
        return False
    say(f"{name} is left out: it reads as {reading}")
    return True


def _synthetic(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Draw healthy scans of the held-out heads."""
    _, paths = split_heads(options.data / "head_labels", 0.1)
    source = read_head_set(paths, HeadsConfig())
    for kind in HEALTHY_KINDS:
        for form, index in itertools.product(SPACINGS_MM, range(2 * HEALTHY_SCANS)):
            rng = generator("healthy", kind, index)
            head = source.heads[(index // 2) % len(source.heads)]
            drawn = draw_scan(head, (), rng, kind=kind, spacing_mm=SPACINGS_MM[form])
            name = f"{kind}-{SYNTHETIC}{index}{form}"
            yield _written(folder, name, drawn.image, drawn.brain, drawn.affine)


def _written(folder: Path, name: str, image: Array, brain: Array, affine: Array) -> Row:
    paths = folder / f"{name}.nii.gz", folder / f"{name}_brainmask.nii.gz"
    for path, data in zip(paths, (image, brain.astype(np.uint8)), strict=True):
        nib.save(nib.nifti1.Nifti1Image(data, affine), path)
    return *paths, name


def _real(options: argparse.Namespace) -> Iterator[Row]:
    """List the healthy scans of tables, by the contrast that they are read as."""
    for source in options.healthy:
        for case in find_cases(source):
            if case.label is not None:
                raise InputError(f"{source}: {case.id} has a lesion label; give tables of healthy scans")
            yield case.image.resolve(), Path(str(case.mask)).resolve(), f"{options.healthy_kind}-{case.subject}"


def _tumour_free(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Cut slices with a lesion, and their neighbours, out of the brain masks of FLAIR scans of the training split."""
    for source in options.tumour_free:
        for case in find_cases(source, split="train")[: options.limit]:
            if case.label is None:
                raise InputError(f"{source}: {case.id} has no lesion label, so no slice is known to be free of lesions")
            scan = read_nifti(case.image)
            mask = case.mask if options.masks is None else options.masks / Path(str(case.mask)).name
            brain = read_mask(str(mask), scan, "brain mask")
            lesion = read_mask(case.label, scan, "label").any((0, 1))
            brain[:, :, np.convolve(lesion, [1, 1, 1], "same") > 0] = False
            if brain.sum() > MIN_VOXELS:
                yield _written(folder, f"flair-{case.subject}", scan.data, brain, scan.affine)


CARD = """---
library_name: maediff
license: apache-2.0
tags: [anomaly-detection, brain-mri, diffusion, masked-autoencoder]
trained_on: slices drawn from 18 label maps of real heads, of random contrast, with synthetic lesions; no real scan
finds: tumours and larger multiple sclerosis lesions on FLAIR, larger lesions on T2, on scans that it never saw
misses: many small lesions on T2 and T1, most lesions on T1, lesions that the sign of the contrast hides
---
# MAEDiff model `heads`

**Research use only.** Not a medical device; its maps show departures from healthy anatomy, not disease.

- Method: masked-autoencoder-enhanced diffusion (arXiv 2401.10561) whose degradation is pathology, as in cold diffusion.
  One window holds a whole slice when it is used, so that the autoencoder sees nothing.
- Training data: 18 label maps of real heads, none of the scans: slices, contrasts and lesions are drawn on the fly.
- Input: a brain-extracted T1-, T2- or FLAIR-weighted scan; contrasts are not told to the network.

## Training data and attribution
Label maps of SynthSeg (github.com/BBillot/SynthSeg, Apache License 2.0, (c) Benjamin Billot; Billot et al., Medical
Image Analysis 2023). Lesion shapes: consensus masks of 3D-MR-MS (Lesjak et al. 2017, CC BY), chronic stroke masks of
LESYMAP (Pustina et al. 2018, Apache License 2.0). No real intensity was seen in training.

## How it was made
`python -m benchmarks.release.packaged_model train`, then `export`; docs/packaged-model.md tells what was measured.
"""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one step."""
    return STEPS[options.step](options)


STEPS = {"train": train_model, "export": export, "calibrate": calibrate, "check": check}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--run", type=Path, default=Path("runs/heads"), help="folder of the training (%(default)s)")
    parser.add_argument("--healthy", type=Path, action="append", default=[], help="table of real healthy scans")
    parser.add_argument("--healthy-kind", default="t1", choices=HEALTHY_KINDS, help="their contrast (%(default)s)")
    parser.add_argument(
        "--tumour-free", type=Path, action="append", default=[], help="table of FLAIR scans with lesion labels"
    )
    parser.add_argument("--masks", type=Path, metavar="DIR", help="brain masks of these, under the same names")
    parser.add_argument("--limit", type=int, default=40, help="scans of a tumour-free table (%(default)s)")
    parser.add_argument("--real", action="store_true", help="check on real scans alone")
    parser.add_argument("--override", dest="overrides", action="append", default=[], help="such as score.median_mm=3")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a step."""
    return BENCHMARK.run(measure, _options, arguments)


if __name__ == "__main__":
    sys.exit(main())
