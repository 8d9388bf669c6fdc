"""Real tumours: learn from the tumour-free slices of 48 glioma patients, find the tumours of 20 others.

python -m benchmarks.quality.lgg_flair train|choose|score|all --run RUN [--json FILE]

``train`` holds 12 of the 60 training patients out. ``choose`` takes timesteps, sign, filter and erosion from them, with
their tumours. ``score`` takes both thresholds from them, then meets the 20 test patients for the first time.
All patients have a tumour, so their tumour-free slices are *pseudo*-healthy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import maediff
from benchmarks.common import Benchmark, data_folder, plain, say, table
from benchmarks.quality.methods import (
    METRICS,
    FloatMap,
    Maps,
    Scored,
    intensity,
    paired_difference,
    score,
    thresholds,
)
from benchmarks.quality.montage import Shown, write_montage
from benchmarks.quality.patients import CONFIG, MASKS_AS_GIVEN, Patient, split_rows, write_cases
from benchmarks.quality.settings import Setting, choose, grid_table
from maediff.calibration import Calibration
from maediff.card import with_calibration
from maediff.config import Config, ScoreConfig, load_config
from maediff.data.cases import find_cases
from maediff.errors import InputError
from maediff.evaluation import evaluate
from maediff.files import read_json, write_json
from maediff.inference.cohort import CaseOutcome
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.model_folder import load_model_folder, save_model
from maediff.training.loop import Progress
from maediff.volume import read_nifti

BENCHMARK = Benchmark(__file__, __doc__, page="docs/measured.md", results=("lgg_flair.json",))
BOOTSTRAP = 2000
TARGET_AUPRC = 0.40
ISSUE_POSTPROCESSING = ScoreConfig(sign="bright", median_mm=5.0, erode_mm=4.0)
PICTURES = 5


def train(options: argparse.Namespace) -> None:
    """Train in the run folder; patients of the split ``val`` choose the weights by their tumour-free slices."""
    source = _cases_table(options, anew=True)
    overrides = [*options.set, *([] if options.max_steps is None else [f"train.max_steps={options.max_steps}"])]
    config = load_config(options.config, overrides)

    def notice(now: Progress) -> None:
        validated = "" if now.val_loss is None else f", validation {now.val_loss:.4f}"
        left = f"{now.eta_seconds / 60:.0f} min left"
        say(f"train: step {now.step} of {now.max_steps}, loss {now.loss:.4f}{validated}, {left}")

    start = time.perf_counter()
    maediff.train(config, source, options.run, resume=options.resume, device=options.device, on_progress=notice)
    seconds = time.perf_counter() - start
    say(f"train: {seconds:.0f} s")
    write_json(options.run / "train.json", {"seconds": seconds, "resumed": options.resume})


def choose_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Choose timesteps and score settings on labelled validation patients; writes ``choose.json``."""
    cases = find_cases(_cases_table(options), split="val")[: options.choose_patients]
    predictor = load_model(options.run / "model", options.device, accept=MASKS_AS_GIVEN)
    found = choose(predictor, cases) | {"model_hash": predictor.model_hash}
    write_json(options.run / "choose.json", plain(found))
    print(
        f"{len(cases)} validation patients, mean on the working grid; the best of {len(found['grid'])} settings first"
    )
    print(grid_table(found))
    return found


def score_model(options: argparse.Namespace) -> dict[str, Any]:
    """Calibrate on validation patients, infer and evaluate the test patients, and compare with the baseline."""
    source = _cases_table(options)
    validation, test = ([Patient(case) for case in find_cases(source, split=name)] for name in ("val", "test"))
    predictor = load_model(options.run / "model", options.device, _chosen(options.run), accept=MASKS_AS_GIVEN)
    config = predictor.config
    values = [_predict(predictor, patient, number) for number, patient in enumerate(validation, start=1)]
    found = thresholds(values, validation, config.score)
    _infer(options, config, found.calibration)
    methods = {"maediff": score(_written(options.run / "out"), found, test, config.score)}
    for name, settings in (("intensity", ISSUE_POSTPROCESSING), ("intensity-as-maediff", config.score)):
        make = intensity(settings)
        found = thresholds([make(patient) for patient in validation], validation, config.score)
        methods[name] = score(make, found, test, config.score)
    _montage(options.run, methods["maediff"], test)
    results = _results(methods, config, (len(validation), len(test)))
    results["model_hash"] = predictor.model_hash
    results["training"] = read_json(options.run / "train.json") or None
    results["evaluate"] = evaluate(options.run / "out", source, options.run / "metrics", bootstrap=BOOTSTRAP)
    print(summary(results))
    return results


def summary(results: dict[str, Any]) -> str:
    """Render the results as a table."""
    rows = [[name, *(values[metric] for metric in METRICS)] for name, values in results["methods"].items()]
    counts = results["patients"]
    lines = [
        f"{counts['test']} test patients, mean [95 % bootstrap interval]; {counts['validation']} validation patients",
        table(["method", *METRICS], rows),
        table(["paired difference", "auprc"], [[name, value] for name, value in results["auprc_difference"].items()]),
        "dice: threshold from pseudo-healthy slices; dice_validated: from labelled validation patients;",
        "dice_oracle: the best of all thresholds, seen with the truth",
    ]
    return "\n".join(lines)


def _cases_table(options: argparse.Namespace, *, anew: bool = False) -> Path:
    """Write the table of the run, or keep the one that training wrote."""
    path: Path = options.run / "cases.csv"
    if anew or not path.is_file():
        cases = find_cases(data_folder("lgg_flair", options.data) / "cases.csv")
        write_cases(path, split_rows(cases, limit=options.patients))
    return path


def _chosen(folder: Path) -> tuple[str, ...]:
    """Overrides that ``choose`` found for this model; none if it has not run."""
    found = read_json(folder / "choose.json")
    if not found:
        say("score: no choose.json, so the settings are those of the configuration")
        return ()
    if found["model_hash"] != load_model_folder(folder / "model").hash:
        raise InputError(f"{folder / 'choose.json'} belongs to another model; run choose again, or remove it")
    best = found["best"]
    return Setting(tuple(best["timesteps"]), best["sign"], best["median_mm"], best["erode_mm"]).overrides()


def _predict(predictor: Predictor, patient: Patient, number: int) -> FloatMap:
    result = predictor.predict(patient.case.image, patient.case.mask)
    say(f"score: validation patient {number}, {result.seconds:.0f} s")
    return result.anomaly


def _infer(options: argparse.Namespace, config: Config, calibration: Calibration) -> None:
    """Store the calibrated model as ``RUN/chosen`` and score the test patients with it; finished ones are kept."""
    chosen, out = options.run / "chosen", options.run / "out"
    stored = load_model_folder(options.run / "model")
    save_model(chosen, stored.weights, config, calibration.to_dict(), with_calibration(stored.card, calibration))

    def told(outcome: CaseOutcome) -> None:
        say(f"score: {outcome.case} {outcome.status}, {outcome.seconds or 0:.0f} s")

    table = options.run / "cases.csv"
    done = maediff.infer(chosen, table, out, device=options.device, split="test", on_case=told)
    if done.failed:
        raise InputError(f"{done.failed} test scans failed; see {out / 'cases.tsv'}")


def _written(out: Path) -> Maps:
    """Read the maps that inference wrote."""

    def values(patient: Patient) -> FloatMap:
        found: FloatMap = read_nifti(out / f"{patient.case.id}_anomaly.nii.gz").data
        return found

    return values


def _results(methods: dict[str, Scored], config: Config, counts: tuple[int, int]) -> dict[str, Any]:
    ours = methods["maediff"]
    return {
        "patients": {"validation": counts[0], "test": counts[1]},
        "settings": {
            "test_timesteps": config.diffusion.test_timesteps,
            "score": config.score.model_dump(),
            "intensity": ISSUE_POSTPROCESSING.model_dump(include={"median_mm", "erode_mm"}),
            "bootstrap": BOOTSTRAP,
        },
        "methods": {name: scored.summary(BOOTSTRAP, 0) for name, scored in methods.items()},
        "auprc_difference": {
            f"maediff - {name}": paired_difference(ours, scored, "auprc", BOOTSTRAP, 0)
            for name, scored in methods.items()
            if name != "maediff"
        },
        "target_auprc": TARGET_AUPRC,
    }


def _montage(folder: Path, ours: Scored, test: Sequence[Patient]) -> None:
    """Show test patients from the worst AUPRC to the best, evenly spread, so that no choice flatters."""
    order = np.argsort([row["auprc"] for row in ours.rows])
    picked = np.unique(np.linspace(0, len(order) - 1, min(PICTURES, len(order))).round().astype(int))
    rows = []
    for rank in picked:
        index = int(order[rank])
        patient, out = test[index], folder / "out"
        rows.append(
            Shown(
                title=f"AUPRC {ours.rows[index]['auprc']:.2f}",
                affine=patient.volume.affine,
                scan=patient.volume.data,
                reconstruction=read_nifti(out / f"{patient.case.id}_reconstruction.nii.gz").data,
                anomaly=read_nifti(out / f"{patient.case.id}_anomaly.nii.gz").data,
                brain=patient.brain,
                truth=patient.label,
            )
        )
    path = folder / "figures" / "test_patients.png"
    write_montage(path, rows, "Test patients from the worst AUPRC to the best")
    say(f"score: pictures in {path} (not for publication: licence of the scans)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train, choose or score, or all of it."""
    results: dict[str, Any] = {}
    if options.step in {"train", "all"}:
        train(options)
    if options.step in {"choose", "all"}:
        results = choose_settings(options)
    if options.step in {"score", "all"}:
        results = score_model(options)
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("step", choices=("train", "choose", "score", "all"), help="all: train, choose, score")
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="run folder (keep it out of git)")
    parser.add_argument("--config", default=str(CONFIG), help="preset or YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change the configuration")
    parser.add_argument("--max-steps", type=int, metavar="N", help="number of training steps")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted training")
    parser.add_argument(
        "--choose-patients", type=int, default=8, metavar="N", help="patients to choose on (%(default)s)"
    )
    parser.add_argument("--patients", type=int, metavar="N", help="patients per split: a smoke test only")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
