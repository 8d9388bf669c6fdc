"""Whole jobs over many scans: train a model, calibrate it, score a cohort. The command line calls these."""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maediff import card
from maediff.calibration import Calibration, calibrate, count_scans
from maediff.config import UNTRAINED, Config, config_hash, dump_yaml, override
from maediff.data.bids import DERIVATIVE_FILES, describe_derivatives
from maediff.data.cases import Case, find_cases
from maediff.data.slices import SliceSet, healthy_slices
from maediff.errors import InputError
from maediff.hardware import resolve_device
from maediff.inference.cluster import ScanTask, connect, infer_on_cluster
from maediff.inference.cohort import (
    CaseOutcome,
    CaseTable,
    InferSummary,
    Outputs,
    PlannedCase,
    infer_cases,
    table_name,
)
from maediff.inference.cost import Cost, estimate_cost
from maediff.inference.locations import fit_locations, left_out_maps
from maediff.inference.plan import cases_of
from maediff.inference.predictor import AnomalyResult, BoolArray, FloatArray, Predictor, load_model
from maediff.inference.untrained import untrained_weights
from maediff.locking import folder_lock
from maediff.models.baselines import check_trainable
from maediff.provenance import run_record, write_run
from maediff.report.preview import write_preview
from maediff.store import (
    CARD,
    load_model_folder,
    remove_leftovers,
    remove_staged,
    resolve_model,
    save_model,
    update_calibration,
    verify_model_folder,
    write_text,
)
from maediff.training import processes
from maediff.training.loop import FitResult, Progress, fit

log = logging.getLogger(__name__)
_VALIDATION_NAMES = frozenset({"val", "valid", "validation", "dev"})
OnProgress = Callable[[Progress], None]


def train(
    config: Config,
    source: str | Path,
    run_dir: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    split: str | None = None,
    channel: str | None = None,
    on_case: Callable[[str], None] | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Train on healthy scans, calibrate on the held-out ones, and write a model folder.

    Rows of `split` "train" are learned from and rows of "val" choose the weights and the threshold; where nothing is
    named so, `data.validation_fraction` of the subjects is held out. Slices that hold any of a lesion label are left
    out and counted; scans with a label are never calibrated on.

    Args:
        config: Configuration.
        source: Scans, see :func:`maediff.data.cases.find_cases`.
        run_dir: Gets `model/`, `log.csv`, `checkpoints/`, `config.yaml` and `run.json`.
        resume: Continue exactly from the last checkpoint.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        split: Learn from rows of this split instead of "train".
        channel: Which `image_<channel>` column of a table.
        on_case: Called with the name of each scan as it is read, before the first step.
        on_progress: Called at the first step and at every logged one.

    Returns:
        The model folder.

    Raises:
        InputError: No usable scan.
        OutputError: The run folder cannot be written, or another training writes there.
        TrainingInterrupted: On SIGINT or SIGTERM, after saving.
    """
    run_dir = Path(run_dir)
    chosen = resolve_device(device)
    with processes.joined(chosen), _sole_training(run_dir) if processes.is_main() else contextlib.nullcontext():
        return _train(
            config,
            source,
            run_dir,
            resume=resume or processes.restarted(),
            device=chosen,
            split=split,
            channel=channel,
            on_case=on_case,
            on_progress=on_progress,
        )


@contextlib.contextmanager
def _sole_training(run_dir: Path) -> Iterator[None]:
    """Hold a run folder and clear away what a killed training left half-written; for the main process."""
    with folder_lock(run_dir):
        for name in ("config.yaml", "run.json", "log.csv", "model", "checkpoints/last.pt"):
            remove_leftovers(run_dir / name)
        remove_staged(run_dir / "model")
        for half_written in (run_dir / "cache").glob(".slices-*.npz"):
            half_written.unlink(missing_ok=True)
        yield


def _train(
    config: Config,
    source: str | Path,
    run_dir: Path,
    *,
    resume: bool,
    device: torch.device,
    split: str | None,
    channel: str | None,
    on_case: Callable[[str], None] | None,
    on_progress: OnProgress | None,
) -> Path:
    check_trainable(config)
    learn, held_out = split_cases(find_cases(source, channel=channel, channels=config.data.channels), config, split)
    if processes.is_main():
        write_text(run_dir / "config.yaml", dump_yaml(config))
    cache = run_dir / "cache"
    with processes.main_first():
        training = healthy_slices(learn, config.data, cache, on_case)
        validation = healthy_slices(held_out, config.data, cache, on_case)
    log.log(logging.INFO if processes.is_main() else logging.DEBUG, "%s", describe_slices(training, validation))
    if config.method in UNTRAINED:
        result = FitResult(untrained_weights(config, learn), math.nan, 0, None)
    else:
        initial = load_model_folder(resolve_model(config.train.init)).weights if config.train.init else None
        result = fit(
            config,
            training,
            validation,
            run_dir,
            device=device,
            resume=resume,
            initial=initial,
            on_progress=on_progress,
        )
    if processes.is_main():
        arguments = {"source": source, "run_dir": run_dir, "resume": resume, "split": split, "channel": channel}
        _finish_training(
            config,
            run_dir,
            result,
            slices=(training, validation),
            held_out=held_out,
            arguments=arguments,
            device=device,
        )
    processes.wait_for_all()  # so that the model folder is there when any of them returns
    return run_dir / "model"


def _finish_training(
    config: Config,
    run_dir: Path,
    result: FitResult,
    *,
    slices: tuple[SliceSet, SliceSet],
    held_out: Sequence[Case],
    arguments: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Write the model folder, calibrate it and write `run.json`."""
    training, validation = slices
    model = run_dir / "model"
    text = card.model_card(
        config, data=describe_slices(training, validation), steps=result.steps, loss=result.best_loss
    )
    save_model(model, result.weights, config, None, text)
    unreadable = {name for name, _ in validation.failed}
    healthy = [case for case in held_out if case.label is None and case.id not in unreadable]
    if healthy:
        origin = f"{count_scans(len(healthy), 'held-out healthy')} of training"
        _calibrate(model, load_model(model, str(device)), healthy, origin=origin)
    else:
        log.warning("no held-out scan is wholly healthy: the model has no threshold; run `maediff calibrate`")
    hashes = {"model": verify_model_folder(model), "config": config_hash(config)}
    facts = {
        "slices": describe_slices(training, validation),
        "failed": [*training.failed, *validation.failed],
        "pace": asdict(result.pace) if result.pace else None,
    }
    record = run_record("train", arguments, seed=config.train.seed, device=str(device), hashes=hashes, **facts)
    write_run(run_dir, record)


def split_cases(cases: Sequence[Case], config: Config, split: str | None) -> tuple[list[Case], list[Case]]:
    """Part cases into those to learn from and those held out, never dividing a subject.

    Raises:
        InputError: Too few subjects.
    """
    held_out = [case for case in cases if (case.split or "").lower() in _VALIDATION_NAMES]
    wanted = split or ("train" if any(case.split == "train" for case in cases) else None)
    learn = [case for case in cases if case not in held_out and (wanted is None or case.split == wanted)]
    if not held_out:
        subjects = sorted({case.subject for case in learn})
        if len(subjects) < 2:
            raise InputError(f"{len(subjects)} subject to train on; at least 2 are needed, one of them for validation")
        count = max(1, round(config.data.validation_fraction * len(subjects)))
        order = np.random.default_rng(config.train.seed).permutation(len(subjects))
        chosen = {subjects[index] for index in order[:count]}
        held_out = [case for case in learn if case.subject in chosen]
        learn = [case for case in learn if case.subject not in chosen]
    if not learn:
        raise InputError(f"no scan has split {wanted!r}; splits here: {sorted({str(case.split) for case in cases})}")
    return learn, held_out


def calibrate_model(
    model: str | Path,
    source: str | Path,
    *,
    device: str = "auto",
    split: str | None = None,
    channel: str | None = None,
    rate: float | None = None,
    locations: bool = False,
    on_case: Callable[[str], None] | None = None,
) -> Calibration:
    """Set a model's threshold from healthy scans and store it in the model folder.

    With `locations` the model also gets their residuals by place, and its maps are in standard deviations above these
    from then on; the threshold is that of maps which other subjects' statistics made. Without, earlier ones go.

    Args:
        model: Model folder; the packaged model must be copied first, since packages are read-only.
        source: Healthy scans; rows with a lesion label are refused.
        device: Where to compute.
        split: Use only rows of this split.
        channel: Which `image_<channel>` column of a table.
        rate: Share of healthy brain voxels above the threshold; the model's `score.false_positive_rate` where None.
        locations: Also collect healthy residuals by place; the scans must lie in one template's space.
        on_case: Told the name of each scan.

    Raises:
        ConfigError: ``rate`` is outside (0, 1).
        InputError: No healthy scan, or a scan that cannot be used: a threshold must not rest on fewer than was said.
        GeometryError: With `locations`, a scan that does not say that it lies in a template's space.
    """
    folder = resolve_model(model)
    stored = load_model(folder, device)
    config = override(stored.config, [f"score.locations={str(locations).lower()}"])
    predictor = replace(stored, config=config, locations=None)
    cases = find_cases(source, split=split, channel=channel, channels=predictor.config.data.channels)
    labelled = [case.id for case in cases if case.label]
    if labelled:
        raise InputError(
            f"{len(labelled)} of {len(cases)} scans have a lesion label ({', '.join(labelled[:3])}, …); "
            "calibrate on healthy scans only: remove those rows"
        )
    return _calibrate(folder, predictor, cases, count_scans(len(cases), "healthy"), rate=rate, on_case=on_case)


def infer(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    mask: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    preview: bool = False,
    split: str | None = None,
    channel: str | None = None,
    overrides: Iterable[str] = (),
    scheduler: str | None = None,
    workers: int | None = None,
    threshold: float | None = None,
    rate: float | None = None,
    on_case: Callable[[CaseOutcome], None] | None = None,
    on_batch: Callable[[str, int, int], None] | None = None,
) -> InferSummary:
    """Turn scans into anomaly maps in their own space.

    Args:
        model: Model folder, or "phantom".
        source: NIfTI file, folder, CSV/TSV table or BIDS data set.
        out: Output folder: maps and a sidecar a scan, `cases.tsv` and `run.json`.
        mask: Brain mask of a single scan.
        device: Where to compute.
        seed: Seed of the noise.
        shard: (K, N): work on the K-th of N parts; its table is `cases-K-of-N.tsv`.
        overwrite: Compute again what is finished.
        preview: Also write a PNG a scan.
        split: Only rows of this split.
        channel: Which `image_<channel>` column of a table.
        overrides: Changes of the model's configuration, see :func:`~maediff.inference.predictor.load_model`.
        scheduler: Address of a Dask scheduler, whose workers score the scans; `out` and scans on shared storage.
        workers: Score the scans in this many processes on this machine, where no scheduler is given.
        threshold: Threshold of the map to use instead of the calibrated one.
        rate: Use the threshold that the calibration records for this false-positive rate.
        on_case: Told the outcome of each scan.
        on_batch: Progress callback within a scan, called with (case, windows done, windows in total); not on a cluster.

    Returns:
        Counts and outcomes; a scan that failed stands there and in `cases.tsv`, the others are done.

    Raises:
        InputError: No scan found.
        ModelError: The model cannot be used.
        OutputError: The output folder cannot be written.
    """
    out, overrides = Path(out), tuple(overrides)
    alone = scheduler is None and workers is None
    # the workers have the devices
    predictor = load_model(model, device if alone else "cpu", overrides, threshold=threshold, rate=rate)
    cases = cases_of(source, shard, predictor.config, mask=mask, split=split, channel=channel)
    table = out / table_name(shard)
    on_result = _preview if preview else None
    arguments: dict[str, Any] = {
        "model": model,
        "source": source,
        "out": out,
        "mask": mask,
        "shard": shard,
        "overwrite": overwrite,
        "scheduler": scheduler,
        "workers": workers,
    }
    arguments |= {"split": split, "channel": channel, "overrides": overrides, "threshold": threshold, "rate": rate}
    with folder_lock(out, shard):
        for name in (table.name, "run.json", *DERIVATIVE_FILES) if shard == (1, 1) else (table.name,):
            remove_leftovers(out / name)
        if alone:
            summary = infer_cases(
                predictor,
                cases,
                table,
                seed=seed,
                overwrite=overwrite,
                on_case=on_case,
                on_result=on_result,
                on_batch=on_batch,
            )
        else:
            with connect(scheduler, workers) as client, CaseTable(table) as rows:
                began_ns = rows.start()
                folder = str(resolve_model(model).resolve())
                task = ScanTask(
                    folder, device, overrides, out.resolve(), seed, overwrite, began_ns, on_result, threshold, rate
                )
                summary = infer_on_cluster(client, cases, task, rows, on_case=on_case)
        where = str(predictor.device) if alone else f"{device} on Dask workers"
        _record_inference(out, arguments, predictor, summary, seed=seed, device=where)
        suffixes = [case.bids.suffix for case in cases if case.bids]
        if suffixes:
            describe_derivatives(out, suffixes)
    return summary


def _record_inference(
    out: Path, arguments: dict[str, Any], predictor: Predictor, summary: InferSummary, *, seed: int, device: str
) -> None:
    hashes = {"model": predictor.model_hash, "config": predictor.config_hash}
    counts = {"done": summary.done, "skipped": summary.skipped, "failed": summary.failed}
    calibrated = predictor.calibration.to_dict() if predictor.calibration else None
    facts = {"counts": counts, "calibration": calibrated}
    write_run(out, run_record("infer", arguments, seed=seed, device=device, hashes=hashes, **facts))


def estimate_inference(
    model: str | Path,
    planned: Sequence[PlannedCase],
    *,
    device: str = "auto",
    overrides: Iterable[str] = (),
) -> Cost | None:
    """Estimate what :func:`infer` would cost for what :func:`maediff.plan_inference` lists; arguments are the same."""
    return estimate_cost(load_model(model, device, tuple(overrides)), planned)


def describe_slices(training: SliceSet, validation: SliceSet) -> str:
    """Count what a model is trained on, in a sentence."""
    text = (
        f"{len(training)} slices of {len(set(training.subjects))} subjects to learn from, "
        f"{len(validation)} of {len(set(validation.subjects))} held out"
    )
    left_out = training.left_out + validation.left_out
    if left_out:
        text += f"; {left_out} slices with a lesion label left out"
    failed = len(training.failed) + len(validation.failed)
    return text + (f"; {failed} scans could not be read" if failed else "")


def _calibrate(
    folder: Path,
    predictor: Predictor,
    cases: Sequence[Case],
    origin: str,
    *,
    rate: float | None = None,
    on_case: Callable[[str], None] | None = None,
) -> Calibration:
    def maps() -> Iterator[tuple[FloatArray, BoolArray, float]]:
        for case in cases:
            if on_case:
                on_case(case.id)
            result = predictor.predict(case.images, case.mask)
            yield result.anomaly, result.brain_mask, result.score

    usual = predictor.config.score.false_positive_rate
    rate = usual if rate is None else rate
    locations = None
    if predictor.config.score.locations:
        with tempfile.TemporaryDirectory(prefix="maediff-") as kept:
            locations = fit_locations(predictor, cases, Path(kept), on_case)
            found = calibrate(left_out_maps(predictor, cases, locations, Path(kept)), rate, origin=origin)
    else:
        found = calibrate(maps(), rate, origin=origin)
    described, content = (locations.described, locations.to_bytes()) if locations else (None, None)
    text = card.with_calibration((folder / CARD).read_text(encoding="utf-8"), found, described)
    update_calibration(folder, found.to_dict(), card=text, locations=content)
    return found


def _preview(result: AnomalyResult, outputs: Outputs) -> None:
    write_preview(result, outputs.preview)
