"""Train a model on healthy scans and calibrate it on the held-out ones."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maediff import card
from maediff.calibration import count_scans
from maediff.config import UNTRAINED, Config, config_hash, dump_yaml
from maediff.data.cases import Case, search_cases
from maediff.data.slices import SliceSet, healthy_slices
from maediff.data.walk import LeftOut, as_facts
from maediff.errors import InputError
from maediff.files import remove_leftovers, write_text
from maediff.hardware import resolve_device
from maediff.heads.headset import HeadSet, read_head_set, split_heads
from maediff.inference.load import load_model
from maediff.inference.untrained import untrained_weights
from maediff.jobs.calibrate import calibrate_folder
from maediff.locking import folder_lock
from maediff.methods.build import check_trainable
from maediff.model_folder import load_model_folder, resolve_model, save_model, verify_model_folder
from maediff.provenance import run_record, write_run
from maediff.staging import remove_staged
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
    pattern: str | None = None,
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
        pattern: Which files of a folder are scans, see :func:`maediff.data.cases.search_cases`.
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
            pattern=pattern,
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
    pattern: str | None,
    on_case: Callable[[str], None] | None,
    on_progress: OnProgress | None,
) -> Path:
    check_trainable(config)
    learn: list[Case] = []
    held_out: list[Case] = []
    left_out: tuple[LeftOut, ...] = ()
    if not config.heads.enabled:
        channels = config.data.channels
        found = search_cases(source, channel=channel, channels=channels, pattern=pattern, exclude=[run_dir])
        learn, held_out = split_cases(found.cases, config, split)
        left_out = found.left_out
    if processes.is_main():
        write_text(run_dir / "config.yaml", dump_yaml(config))
    cache = run_dir / "cache"
    training: SliceSet | HeadSet
    validation: SliceSet | HeadSet
    with processes.main_first():
        if config.heads.enabled:
            parts = split_heads(source, config.data.validation_fraction)
            training, validation = (read_head_set(paths, config.heads, cache) for paths in parts)
        else:
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
        arguments = {"source": Path(source), "run_dir": run_dir, "resume": resume, "split": split, "channel": channel}
        arguments |= {"pattern": pattern}
        _finish_training(
            config,
            run_dir,
            result,
            slices=(training, validation),
            held_out=held_out,
            arguments=arguments,
            device=device,
            left_out=left_out,
        )
    processes.wait_for_all()  # so that the model folder is there when any of them returns
    return run_dir / "model"


def _finish_training(
    config: Config,
    run_dir: Path,
    result: FitResult,
    *,
    slices: tuple[SliceSet | HeadSet, SliceSet | HeadSet],
    held_out: Sequence[Case],
    arguments: Mapping[str, Any],
    device: torch.device,
    left_out: Sequence[LeftOut],
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
        calibrate_folder(model, load_model(model, str(device)), healthy, origin=origin)
    else:
        log.warning("no held-out scan is wholly healthy: the model has no threshold; run `maediff calibrate`")
    hashes = {"model": verify_model_folder(model), "config": config_hash(config)}
    facts = {
        "slices": describe_slices(training, validation),
        "failed": [*training.failed, *validation.failed],
        "left_out": as_facts(left_out),
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


def describe_slices(training: SliceSet | HeadSet, validation: SliceSet | HeadSet) -> str:
    """Count what a model is trained on, in a sentence."""
    if isinstance(training, HeadSet) or isinstance(validation, HeadSet):
        return f"slices drawn from {len(training.subjects)} label maps of heads, {len(validation.subjects)} held out"
    text = (
        f"{len(training)} slices of {len(set(training.subjects))} subjects to learn from, "
        f"{len(validation)} of {len(set(validation.subjects))} held out"
    )
    left_out = training.left_out + validation.left_out
    if left_out:
        text += f"; {left_out} slices with a lesion label left out"
    failed = len(training.failed) + len(validation.failed)
    return text + (f"; {failed} scans could not be read" if failed else "")
