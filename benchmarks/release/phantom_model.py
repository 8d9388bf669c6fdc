"""The packaged model `phantom`: make it, choose its settings on validation brains, and test it on unseen ones.

    python -m benchmarks.release.phantom_model train  --run runs/phantom    (hours on 2 cores; resumable)
    python -m benchmarks.release.phantom_model refine --run runs/phantom    (more weight on lesions, into RUN-refined)
    python -m benchmarks.release.phantom_model choose --run runs/phantom-refined    (settings, on a validation cohort)
    python -m benchmarks.release.phantom_model export --run runs/phantom-refined --set …  (to maediff/weights)
    python -m benchmarks.release.phantom_model test   --run runs/phantom --json benchmarks/results/phantom.json

All brains are synthetic but for the last part of `test`, which looks at ../shared/data where it is present.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Benchmark, shared_data
from benchmarks.quality.stacks import VALIDATION, auprc, reconstruct, validation_cases
from maediff.calibration import Calibration
from maediff.config import Config, load_config, override
from maediff.data.cases import Case, find_cases
from maediff.data.phantom import MODALITIES
from maediff.data.synthesis import synthesise
from maediff.demo import score_baselines, score_model
from maediff.evaluation.voxel import voxel_metrics
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.jobs.calibrate import calibrate_model
from maediff.jobs.train import train
from maediff.methods.intensity import intensity_map
from maediff.model_folder import load_model_folder, save_model
from maediff.scoring import Sign, filter_map
from maediff.volume import read_mask

BENCHMARK = Benchmark(__file__, __doc__, page="docs/measured.md", results=("phantom.json",))
TRAIN = {"subjects": 160, "seed": 2026, "modality": "mixed"}
TIMES = ("50", "100", "150", "250", "400")
TEST = {"subjects": 40, "seed": 4242}
PLAIN = ("model.mirror=false", "model.gate=false", "train.outside_weight=0")
"""What the preset `small` did not have when the model was trained."""
REFINE = (
    "train.max_steps=1000",
    "train.lr=8e-4",
    "train.warmup_steps=50",
    "train.lesion_weight=0.2",
    "train.workers=1",
    "train.val_every=250",
)
PACKAGED = Path("maediff/weights/phantom")


def data_of(run: Path) -> Path:
    """Name the training cohort of a run, which a refined run shares."""
    return run.with_name(f"{run.name.removesuffix('-refined')}-data")


def train_model(options: argparse.Namespace) -> dict[str, Any]:
    """Synthesise the training cohort and train."""
    run, data = options.run, data_of(options.run)
    if not (data / "cases.csv").is_file():
        synthesise(data, healthy_only=True, **TRAIN)  # type: ignore[arg-type]
    config = load_config(options.config, [*PLAIN, "train.workers=1"])
    train(config, data / "cases.csv", run, resume=True, on_progress=print)
    return {}


def refine(options: argparse.Namespace) -> dict[str, Any]:
    """Train on from a finished run, with more weight on lesions, into RUN-refined."""
    run = options.run
    config = load_config("small", [*PLAIN, f"train.init={run / 'model'}", *REFINE])
    refined = run.with_name(f"{run.name}-refined")
    train(config, data_of(run) / "cases.csv", refined, resume=True, on_progress=print)
    return {}


def choose(options: argparse.Namespace) -> dict[str, Any]:
    """Try test timesteps, sign, median and erosion on a validation cohort."""
    cases = validation_cases(options.run, options.contrast)[: options.subjects]
    print(f"{'timesteps':>12} {'sign':>6} {'median':>6} {'erode':>5}     ms  tumour    dark  healthy l1")
    for text in options.times:
        predictor = load_run(options.run, [f"diffusion.test_timesteps=[{text}]"])
        for line in try_settings(predictor, cases, options.every):
            print(f"{text:>12} {line}", flush=True)
    return {}


def load_run(run: Path, overrides: Sequence[str]) -> Predictor:
    """Load a finished run, or the averaged weights of one that is still training."""
    if (run / "model").is_dir():
        return load_model(run / "model", "cpu", tuple(overrides))
    state = torch.load(run / "checkpoints/last.pt", map_location="cpu", weights_only=True)
    config = override(load_config(run / "config.yaml"), overrides)
    folder = run / "snapshot"
    save_model(folder, state["ema"], config, None, f"snapshot of step {state['step']}")
    return load_model(folder, "cpu")


def try_settings(predictor: Predictor, cases: Iterable[Case], every: int) -> list[str]:
    """Reconstruct once, score many times; return the rows of a table."""
    stacks = reconstruct(predictor, cases, every)
    lines = []
    for sign, median, erode in itertools.product(("abs", "bright"), (0.0, 6.0, 10.0), (0.0, 2.0)):
        score = predictor.config.score.model_copy(update={"sign": sign, "median_mm": median, "erode_mm": erode})
        shown = "  ".join(f"{value:6.3f}" for value in auprc(stacks, score).values())
        lines.append(f"{sign:>6} {median:6g} {erode:5g} {shown}")
    return lines


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write the packaged model: half-precision weights, chosen settings, threshold from held-out healthy brains."""
    run = options.run
    stored = load_model_folder(run / "model")
    config: Config = override(stored.config, options.set)
    weights = {name: value.half() if value.is_floating_point() else value for name, value in stored.weights.items()}
    save_model(PACKAGED, weights, config, None, card(stored.card))
    found: Calibration = calibrate_model(PACKAGED, data_of(run) / "cases.csv", split="val")
    size = (PACKAGED / "model.safetensors").stat().st_size / 2**20
    print(f"{PACKAGED}: {size:.1f} MiB, threshold {found.threshold:.3f} from {found.n_scans} healthy synthetic brains")
    return {}


def card(trained: str) -> str:
    """Add to the card of the run what a user of the packaged model should know."""
    return (
        trained.replace("license: other", "license: apache-2.0").replace("# MAEDiff model", "# MAEDiff model `phantom`")
        + f"""
## How it was made
From random weights, on 2 CPU cores, on synthetic brains only (ICBM-152 maps bundled with nilearn;
{TRAIN["subjects"]} healthy subjects, seed {TRAIN["seed"]}: T2-, FLAIR-, T1-like and random contrasts), in two stages:

1. `python -m benchmarks.release.phantom_model train --run runs/phantom`: the preset `small` without
   the other hemisphere, the gate and the loss outside the window ({", ".join(PLAIN)}), 5000 steps of 16 slices,
   training seed 0. Up to step 2904 pseudo-lesions had no holes (commit 97538e4), then a quarter of their fillings were
   holes;
2. `python -m benchmarks.release.phantom_model refine --run runs/phantom`: 1000 more steps at a learning rate of 8e-4
   and a `lesion_weight` of 0.2, with two fifths of the fillings holes, the code of this release.

Then `choose` and `export` of the same script on `runs/phantom-refined`. Settings were chosen on validation brains of
seed {VALIDATION["seed"]}. The two stages have not been repeated from nothing with the code of this release.

## What it is for
Trying MAEDiff out, demos and tests. Input: skull-stripped, roughly MNI-aligned T1, T2 or FLAIR at about 2 mm or finer.
On real scans it has seen no scanner, no pathology and no age but those of its simulator: measure before you believe.
Measured: docs/measured.md, and benchmarks/results/phantom.json
(`python -m benchmarks.release.phantom_model test`: three contrasts on unseen seeds, and real MS patients).
Its weak spot is known: dark lesions at the rim of the brain, which look like background to a network that is not told
where the brain ends.
"""
    )


def test(options: argparse.Namespace) -> dict[str, Any]:
    """Score the packaged model and the plain baselines on seeds that it never saw, and on real scans if present."""
    results: dict[str, Any] = {"cohort": TEST}
    for modality in options.contrasts:
        out = options.run.with_name(f"{options.run.name}-test-{modality}")
        table = synthesise(out / "data", modality=modality, **TEST)  # type: ignore[arg-type]
        rows = {"maediff-phantom": score_model("phantom", table, out, "-phantom")}
        rows |= score_baselines(find_cases(table), load_model("phantom", "cpu").config)
        results[modality] = rows
        show(modality, rows)
    results["mslub"] = real_scans(options.data)
    return results


def real_scans(data: Path) -> dict[str, Any]:
    """Score the packaged model on two MS patients, if their scans are there: a smoke test, not a benchmark."""
    folder = shared_data("mslub", data)
    if folder is None:
        return {}
    predictor = load_model("phantom", "cpu")
    found: dict[str, Any] = {}
    signs: dict[str, Sign] = {"flair": "bright", "t2": "bright", "t1": "dark"}
    for channel, sign in signs.items():
        for case in find_cases(folder / "cases.csv", channel=channel):
            result = predictor.predict(case.image, case.mask)
            volume, brain = result.volume, result.brain_mask
            label = read_mask(str(case.label), volume, "lesion label")
            plain = filter_map(
                intensity_map(volume.data, brain, sign),
                brain,
                volume.spacing_mm,
                predictor.config.score,
            )
            row = {
                "maediff-phantom": voxel_metrics(result.anomaly, brain, label, 0.0).auprc,
                "intensity": voxel_metrics(plain, brain, label, 0.0).auprc,
                "lesion_share": float(label[brain].mean()),
                "seconds": result.seconds,
            }
            found[f"{case.subject}_{channel}"] = row
            print(case.subject, channel, {name: round(value, 4) for name, value in row.items()}, flush=True)
    return found


def show(modality: str, rows: dict[str, Any]) -> None:
    """Print AUPRC by method and lesion kind."""
    for method, kinds in rows.items():
        print(f"{modality:6} {method:16}", {kind: round(m["auprc"], 3) for kind, m in kinds.items()}, flush=True)


STEPS = {"train": train_model, "refine": refine, "choose": choose, "export": export, "test": test}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("step", choices=STEPS, help="what to do; in this order")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/phantom"), metavar="RUN", help="run folder (%(default)s)"
    )
    parser.add_argument("--config", default="small", help="train: preset or YAML file (%(default)s)")
    parser.add_argument("--contrast", default="t2", choices=MODALITIES, help="choose: of the cohort (%(default)s)")
    parser.add_argument("--subjects", type=int, default=6, metavar="N", help="choose: scans (%(default)s)")
    parser.add_argument("--every", type=int, default=2, metavar="N", help="choose: take every n-th slice (%(default)s)")
    parser.add_argument(
        "--times", nargs="+", default=TIMES, metavar="T", help="choose: timesteps; 100,300 averages two"
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="export: setting chosen before")
    parser.add_argument("--contrasts", nargs="+", default=["t2", "flair", "t1"], help="test: of the cohorts")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(lambda options: STEPS[options.step](options), add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
