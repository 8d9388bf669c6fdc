"""A model `heads` to be packaged, made from label maps of whole heads alone, by one command that can be interrupted.

    python -m benchmarks.release.packaged_model train  --run runs/heads      (hours on 2 cores; resumable)
    python -m benchmarks.release.packaged_model export --run runs/heads --healthy TABLE…   (to maediff/weights/heads)

`train` takes the stages of :data:`STAGES` one after another, each from the weights of the one before. No model made so
ships yet, and this command has not been run to its end: in the trial that it follows, the first two stages were stopped
by hand at these steps of longer schedules. The third is easier (fewer random contrasts, no faint lesions) and coarser.
`export` halves the precision of the weights and sets the threshold on healthy scans: synthetic ones
of held-out heads, and those of the tables that are given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib

from benchmarks.common import ROOT, Benchmark, say
from maediff.config import HeadsConfig, load_config, override
from maediff.data.cases import find_cases
from maediff.diffusion.noise import generator
from maediff.errors import InputError
from maediff.files import write_text
from maediff.heads.contrast import Kind
from maediff.heads.headset import read_head_set, split_heads
from maediff.heads.scan import draw_scan
from maediff.jobs.calibrate import calibrate_model
from maediff.jobs.train import train
from maediff.model_folder import load_model_folder, save_model

BENCHMARK = Benchmark(__file__, __doc__, page="docs/packaged-model.md")
PACKAGED = ROOT / "maediff" / "weights" / "heads"
HEALTHY_KINDS: tuple[Kind, ...] = ("t1", "t2", "flair")
HEALTHY_SCANS = 4
"""Synthetic healthy scans per contrast that the threshold is set on."""


class Stage(NamedTuple):
    """A part of the training: its name and what differs from the preset `heads`."""

    name: str
    overrides: tuple[str, ...]


_FINE = ("data.size=[96,128]", "data.spacing_mm=1.5", "partition.window=64", "partition.stride=32")
STAGES = (
    Stage("noisy", (*_FINE, "diffusion.timesteps=1000", "train.lesion_weight=0.25", "train.max_steps=1033")),
    Stage("fine", (*_FINE, "train.lesion_weight=0.25", "train.max_steps=1243", "train.warmup_steps=50")),
    Stage(
        "coarse",
        ("heads.random_contrasts=0.1", "heads.faintest=0.35", "train.max_steps=3000", "train.warmup_steps=50"),
    ),
)


def train_stages(options: argparse.Namespace) -> dict[str, Any]:
    """Train all stages, going on where an earlier call stopped."""
    heads, masks = options.data / "head_labels", options.data / "mslub_lesion_masks"
    shapes = [f"heads.white_matter_masks={masks}", f"heads.lesion_masks={options.data / 'stroke_lesion_masks'}"]
    before: Path | None = None
    for stage in STAGES:
        run = options.run / stage.name
        started = [] if before is None else [f"train.init={before}"]
        config = load_config("heads", [*shapes, "train.workers=1", *stage.overrides, *started])
        if not (run / "model" / "model.safetensors").is_file():
            say(f"stage {stage.name}: {config.train.max_steps} steps")
            train(config, heads, run, resume=True, device=options.device, on_progress=lambda now: say(str(now)))
        before = run / "model"
    return {"stages": [stage.name for stage in STAGES], "model": str(before)}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write the packaged model and set its threshold."""
    folder = options.run / STAGES[-1].name / "model"
    stored = load_model_folder(folder)
    config = override(stored.config, ["train.init=null", *options.overrides])
    config = config.model_copy(update={"heads": config.heads.model_copy(update=_NO_PATHS)})
    weights = {name: value.half() if value.is_floating_point() else value for name, value in stored.weights.items()}
    save_model(PACKAGED, weights, config, None, CARD)
    table = write_healthy(options)
    found = calibrate_model(PACKAGED, table, device=options.device)
    size = (PACKAGED / "model.safetensors").stat().st_size / 2**20
    print(f"{PACKAGED}: {size:.1f} MiB, threshold {found.threshold:.3f} from {found.n_scans} healthy scans")
    return {"size_mib": size, "threshold": found.threshold, "scans": found.n_scans}


_NO_PATHS = {"white_matter_masks": None, "lesion_masks": None}  # of the machine that trained, no part of a model


def write_healthy(options: argparse.Namespace) -> Path:
    """Write healthy synthetic scans of the held-out heads, and a table of them and of the real ones that are given.

    Raises:
        InputError: A table holds scans with a lesion label.
    """
    folder = options.run / "healthy"
    folder.mkdir(parents=True, exist_ok=True)
    _, paths = split_heads(options.data / "head_labels", 0.1)
    source = read_head_set(paths, HeadsConfig())
    rows = []
    for kind in HEALTHY_KINDS:
        for index in range(HEALTHY_SCANS):
            rng = generator("healthy", kind, index)
            drawn = draw_scan(source.heads[index % len(source.heads)], (), rng, kind=kind)
            name = f"{kind}-{index}"
            nib.save(nib.nifti1.Nifti1Image(drawn.image, drawn.affine), folder / f"{name}.nii.gz")
            mask = nib.nifti1.Nifti1Image(drawn.brain.astype("uint8"), drawn.affine)
            nib.save(mask, folder / f"{name}_brainmask.nii.gz")
            rows.append((folder / f"{name}.nii.gz", folder / f"{name}_brainmask.nii.gz", name))
    for table in options.healthy:
        for case in find_cases(table):
            if case.label is not None:
                raise InputError(f"{table}: {case.id} has a lesion label; give tables of healthy scans")
            rows.append((case.image.resolve(), Path(str(case.mask)).resolve(), case.subject))
    lines = ["image,mask,subject", *(",".join(map(str, row)) for row in rows)]
    write_text(folder / "cases.csv", "\n".join(lines) + "\n")
    return Path(folder / "cases.csv")


CARD = """---
library_name: maediff
license: apache-2.0
tags: [anomaly-detection, brain-mri, diffusion, masked-autoencoder]
---
# MAEDiff model `heads`

**Research use only.** Not a medical device; its maps show departures from healthy anatomy, not disease.

- Method: masked-autoencoder-enhanced diffusion (arXiv 2401.10561) whose degradation is pathology, as in cold diffusion.
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
    return {"train": train_stages, "export": export}[options.step](options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("step", choices=("train", "export"))
    parser.add_argument("--run", type=Path, default=Path("runs/heads"), help="folder of the training (%(default)s)")
    parser.add_argument("--healthy", type=Path, action="append", default=[], help="table of real healthy scans")
    parser.add_argument("--override", dest="overrides", action="append", default=[], help="such as score.median_mm=3")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a step."""
    return BENCHMARK.run(measure, _options, arguments)


if __name__ == "__main__":
    sys.exit(main())
