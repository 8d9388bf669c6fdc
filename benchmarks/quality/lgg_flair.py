"""Real tumours: learn from the tumour-free slices of 48 glioma patients, find the tumours of 20 others.

python -m benchmarks.quality.lgg_flair train|choose|score|all --run RUN [--json FILE]

``train`` holds 12 of the 60 training patients out. ``choose`` takes timesteps, sign, filter and erosion from them, with
their tumours. ``score`` takes both thresholds from them, then meets the 20 test patients for the first time.
All patients have a tumour, so their tumour-free slices are *pseudo*-healthy.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import maediff
from benchmarks.common import ROOT, add_common, data_folder, plain, run, say, table
from benchmarks.quality.methods import (
    METRICS,
    FloatMap,
    Maps,
    Patient,
    Scored,
    intensity,
    paired_difference,
    score,
    thresholds,
)
from benchmarks.quality.montage import Shown, write_montage
from benchmarks.quality.settings import Setting, choose, grid_table
from maediff.calibration import Calibration
from maediff.card import with_calibration
from maediff.config import Config, ScoreConfig, load_config
from maediff.data.cases import Case, find_cases
from maediff.errors import InputError
from maediff.evaluation import evaluate
from maediff.files import read_json, write_json, write_text
from maediff.inference.cohort import CaseOutcome
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.model_folder import load_model_folder, save_model
from maediff.training.loop import Progress
from maediff.volume import read_nifti

HELD_OUT = 12
SPLIT_SEED = 0
BOOTSTRAP = 2000
TARGET_AUPRC = 0.40
ISSUE_POSTPROCESSING = ScoreConfig(sign="bright", median_mm=5.0, erode_mm=4.0)
PICTURES = 5
COLUMNS = ("image", "mask", "label", "subject", "split", "lesion")


def split_rows(cases: Sequence[Case], held_out: int = HELD_OUT, limit: int | None = None) -> list[dict[str, str]]:
    """Make the table of this benchmark: absolute paths, and some training patients moved to the split ``val``.

    Args:
        cases: The data set; its splits are ``train`` and ``test``.
        held_out: Training patients to move, drawn with a fixed seed.
        limit: Keep only so many patients a split: a smoke test, no benchmark.
    """
    subjects = sorted({case.subject for case in cases if case.split == "train"})
    order = np.random.default_rng(SPLIT_SEED).permutation(len(subjects))
    moved = {subjects[index] for index in order[:held_out]}
    rows: list[dict[str, str]] = []
    for case in sorted(cases, key=lambda case: case.subject):
        rows.append(row(case, "val" if case.subject in moved else str(case.split)))
    if limit is None:
        return rows
    return [kept for name in ("train", "val", "test") for kept in [r for r in rows if r["split"] == name][:limit]]


def row(case: Case, split: str, lesion: str = "") -> dict[str, str]:
    """Make a row of a table of cases: absolute paths, the given split and kind of lesion."""
    paths = (str(path.resolve()) if path else "" for path in (case.image, case.mask, case.label))
    return dict(zip(COLUMNS, (*paths, case.subject, split, lesion), strict=True))


def write_cases(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the table as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


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
    predictor = load_model(options.run / "model", options.device)
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
    predictor = load_model(options.run / "model", options.device, _chosen(options.run))
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
    """Overrides that ``choose`` found for this model; none where it has not run."""
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


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.quality.lgg_flair", description=__doc__.splitlines()[0])
    result.add_argument("step", choices=("train", "choose", "score", "all"), help="all: train, choose, score")
    result.add_argument("--run", type=Path, required=True, metavar="RUN", help="run folder (keep it out of git)")
    result.add_argument(
        "--config", default=str(ROOT / "benchmarks" / "quality" / "lgg_flair.yaml"), help="preset or YAML file"
    )
    result.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change the configuration")
    result.add_argument("--max-steps", type=int, metavar="N", help="train so many steps")
    result.add_argument("--resume", action="store_true", help="continue an interrupted training")
    result.add_argument("--choose-patients", type=int, default=8, metavar="N", help="choose on so many (%(default)s)")
    result.add_argument("--patients", type=int, metavar="N", help="so many patients a split: a smoke test only")
    add_common(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parser().parse_args(arguments)

    def job() -> dict[str, Any]:
        results: dict[str, Any] = {}
        if options.step in {"train", "all"}:
            train(options)
        if options.step in {"choose", "all"}:
            results = choose_settings(options)
        if options.step in {"score", "all"}:
            results = score_model(options)
        return results

    return run(job, options.json)


if __name__ == "__main__":
    sys.exit(main())
