"""The demo: synthesise a cohort, train on it from scratch, and measure the result beside plain baselines, offline."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maediff.config import Config, load_config
from maediff.data.cases import Case, find_cases
from maediff.data.lesions import KINDS
from maediff.data.synthesis import synthesise
from maediff.evaluation.evaluate import evaluate
from maediff.evaluation.method_metrics import method_metrics
from maediff.files import read_json, write_json
from maediff.jobs.calibrate import calibrate_model
from maediff.jobs.infer import infer
from maediff.jobs.train import train
from maediff.methods.intensity import intensity_map
from maediff.methods.zscore import fit_zscore, zscore_map
from maediff.model_folder import packaged_models, resolve_model
from maediff.provenance import peak_rss_mib
from maediff.report.html import write_report
from maediff.scoring import filter_map
from maediff.training.loop import Progress
from maediff.typing import BoolArray, FloatMap
from maediff.volume import Volume, read_mask, read_nifti

Say = Callable[[str], None]
Metrics = dict[str, dict[str, float | None]]
_METRICS = ("auroc", "auprc", "dice", "dice_oracle", "lesion_share")


@dataclass(frozen=True)
class Scale:
    """How large a demo is: subjects, voxel size, and training preset with overrides."""

    subjects: int
    spacing_mm: float
    preset: str
    overrides: tuple[str, ...] = ()


_QUICK_WARNING = (
    "Quick demo: the model was trained for seconds, to prove that every part runs. Its maps mean nothing; run "
    "`maediff demo` without --quick for maps to look at."
)
_MINUTE_WARNING = (
    "This model was trained for about a minute, to show a training from its start to its end; it finds little. "
    "report-phantom.html shows the same brains under a packaged model of 6,000 steps."
)
_MINUTE = ("train.max_steps=300", "train.val_every=50", "train.checkpoint_every=100", "train.log_every=10")
FULL = Scale(24, 2.0, "tiny", _MINUTE)
QUICK = Scale(14, 4.0, "quick")


def run_demo(out: str | Path, *, quick: bool = False, seed: int = 0, on_message: Say | None = None) -> dict[str, Any]:
    """Run the whole pipeline on a synthetic cohort.

    Args:
        out: Gets `data`, `run`, `out`, `metrics`, `report.html` and `summary.json`; for the packaged model
            `out-phantom`, `metrics-phantom` and `report-phantom.html`.
        quick: A cohort at 4 mm and a minute of training, which proves that every part runs; its maps mean nothing.
        seed: Seed of the cohort and of the training.
        on_message: Called with progress messages.

    Returns:
        The content of `summary.json`.

    Raises:
        OutputError: The folder cannot be written.
    """
    out, start = Path(out), time.perf_counter()
    say = on_message or (lambda _message: None)
    scale = QUICK if quick else FULL
    say(f"1/5 synthesising {scale.subjects} T2-like brains into {out / 'data'}")
    table = synthesise(out / "data", subjects=scale.subjects, seed=seed, spacing_mm=scale.spacing_mm)
    config = load_config(scale.preset, [*scale.overrides, f"train.seed={seed}"])
    say(
        f"2/5 training the {scale.preset} preset from scratch on healthy brains ({config.train.max_steps} steps); "
        f"watch it in {out / 'run' / 'pictures'}"
    )
    trained_at = time.perf_counter()
    model = train(config, table, out / "run", on_progress=_progress(say))
    train_seconds = time.perf_counter() - trained_at
    say("3/5 inferring the test brains with the model just trained")
    methods: dict[str, Metrics] = {"maediff": score_model(model, table, out, "")}
    if not quick and "phantom" in packaged_models():
        say("    and with the packaged model, calibrated on the same held-out healthy brains")
        methods["maediff-phantom"] = score_model(_packaged(table, out), table, out, "-phantom")
    say("4/5 scoring plain baselines on the same brains")
    methods |= score_baselines(find_cases(table), config)
    say(f"5/5 writing {out / 'report.html'}")
    warnings = {"": _QUICK_WARNING if quick else _MINUTE_WARNING, "-phantom": ""}
    for suffix, warning in warnings.items():
        if (out / f"out{suffix}" / "cases.tsv").is_file():
            write_report(
                out / f"out{suffix}",
                out / f"report{suffix}.html",
                reference=table,
                metrics=out / f"metrics{suffix}",
                table=methods,
                training=None if suffix else out / "run",
                warning=warning,
                title="MAEDiff demo" + (": packaged model" if suffix else ": model trained in a minute"),
            )
    summary = {
        "methods": methods,
        "seconds": round(time.perf_counter() - start, 1),
        "train_seconds": round(train_seconds, 1),
        "peak_rss_mib": peak_rss_mib(),
        "seed": seed,
        "quick": quick,
    }
    write_json(out / "summary.json", summary)
    return summary


def score_model(model: str | Path, table: Path, out: Path, suffix: str) -> Metrics:
    """Infer and evaluate the test split; return a row of the methods table."""
    maps, metrics = out / f"out{suffix}", out / f"metrics{suffix}"
    infer(model, table, maps, split="test", preview=True)
    evaluate(maps, table, metrics)
    by_lesion: Mapping[str, Mapping[str, Any]] = read_json(metrics / "metrics.json")["by_lesion"]
    return {kind: {name: found[f"voxel.{name}"]["mean"] for name in _METRICS} for kind, found in by_lesion.items()}


def _packaged(table: Path, out: Path) -> Path:
    """Copy the packaged model and calibrate the copy, as a user would for a scanner of his own."""
    model = out / "model-phantom"
    shutil.copytree(resolve_model("phantom"), model, dirs_exist_ok=True)
    calibrate_model(model, table, split="val")
    return model


def score_baselines(cases: Sequence[Case], config: Config) -> dict[str, Metrics]:
    """Score intensity and voxelwise z-score with the post-processing and calibration of the model."""
    scans = {case.id: _read(case) for case in cases}

    def of(split: str) -> list[Case]:
        return [case for case in cases if case.split == split]

    healthy = fit_zscore(scans[case.id] for case in of("train"))
    makers: dict[str, Callable[[Volume, BoolArray], FloatMap]] = {
        "intensity": lambda volume, mask: intensity_map(volume.data, mask),
        "zscore": lambda volume, mask: zscore_map(volume, mask, healthy),
    }
    table = {}
    for name, make in makers.items():

        def score(case: Case, make: Callable[[Volume, BoolArray], FloatMap] = make) -> tuple[FloatMap, BoolArray]:
            volume, mask = scans[case.id]
            return filter_map(make(volume, mask), mask, volume.spacing_mm, config.score), mask

        test = ((*score(case), _label(case, scans[case.id][0]), _kind(case)) for case in of("test") if case.label)
        found = method_metrics((score(case) for case in of("val")), test, config.score.false_positive_rate)
        table[name] = {kind: found[kind] for kind in KINDS if kind in found}
    return table


def _read(case: Case) -> tuple[Volume, BoolArray]:
    volume = read_nifti(case.image)
    return volume, read_mask(case.mask, volume, "brain mask") if case.mask else volume.data > 0


def _label(case: Case, volume: Volume) -> BoolArray:
    label: BoolArray = read_mask(str(case.label), volume, "lesion label")
    return label


def _kind(case: Case) -> str:
    return str(read_json(case.image.with_name(f"{case.stem}.json")).get("SyntheticLesion", "lesion"))


def _progress(say: Say) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.val_loss is not None:
            say(
                f"    step {progress.step}/{progress.max_steps}, validation loss {progress.val_loss:.4f}, "
                f"{progress.images_per_second:.0f} slices/s, {progress.eta_seconds:.0f} s left"
            )

    return report
