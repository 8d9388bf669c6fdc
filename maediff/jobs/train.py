"""Train a model on healthy scans and calibrate it on the held-out ones."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from maediff import card
from maediff.config import UNTRAINED, Config, config_hash, dump_yaml
from maediff.data.cases import Case, search_cases
from maediff.data.healthy import healthy_scans
from maediff.data.slices import SliceSet, healthy_slices
from maediff.data.walk import LeftOut, as_facts
from maediff.errors import InputError
from maediff.files import remove_leftovers, write_text
from maediff.hardware import mixed_precision, resolve_device
from maediff.heads.headset import HeadSet, read_head_set, split_heads
from maediff.jobs.calibrate import calibrate_held_out
from maediff.locking import folder_lock
from maediff.methods.build import build_scan_baseline, check_trainable
from maediff.model_folder import load_model_folder, resolve_model, save_model, verify_model_folder
from maediff.provenance import run_record, write_run
from maediff.staging import remove_staged
from maediff.tables import listed
from maediff.training import processes
from maediff.training.checkpoint import checkpoint_path
from maediff.training.loop import FitResult, Progress, fit
from maediff.training.trackers import check_tracker

log = logging.getLogger(__name__)
_TRAINING_NAMES = frozenset({"train", "training"})
_VALIDATION_NAMES = frozenset({"val", "valid", "validation", "dev"})


@dataclass(frozen=True)
class TrainJob:
    """A training; its attributes are the arguments of :func:`train`."""

    config: Config
    source: Path
    run_dir: Path
    resume: bool = False
    device: str = "auto"
    split: str | None = None
    channel: str | None = None
    pattern: str | None = None

    def run(
        self, on_case: Callable[[str], None] | None = None, on_progress: Callable[[Progress], None] | None = None
    ) -> Path:
        """Train; arguments, result and errors are those of :func:`train`."""
        device = resolve_device(self.device)
        with processes.joined(device), _sole_training(self.run_dir):
            check_trainable(self.config)
            mixed_precision(device, self.config.train.precision)  # refuse before the scans are read
            check_tracker(self.config.train.report_to)
            data = self._read(on_case)
            level = logging.INFO if processes.is_main() else logging.DEBUG
            log.log(level, "%s", describe_slices(data.training, data.validation))
            result = self._fit(data, device, on_progress)
            if processes.is_main():
                self._finish(data, result, device)
            processes.wait_for_all()  # so that the model folder exists when any of them returns
        return self.run_dir / "model"

    def _read(self, on_case: Callable[[str], None] | None) -> _TrainingData:
        """Read the slices, or the label maps of heads to draw slices from; the main process caches them."""
        config = self.config
        cache = self.run_dir / "cache"
        learn: list[Case] = []
        held_out: list[Case] = []
        left_out: tuple[LeftOut, ...] = ()
        if not config.heads.enabled:
            found = search_cases(
                self.source,
                channel=self.channel,
                channels=config.data.channels,
                pattern=self.pattern,
                exclude=[self.run_dir],
            )
            learn, held_out = split_cases(found.cases, config, self.split)
            left_out = found.left_out
        if processes.is_main():  # only once there is something to train on
            write_text(self.run_dir / "config.yaml", dump_yaml(config))
        with processes.main_first():
            if config.heads.enabled:
                parts = split_heads(self.source, config.data.validation_fraction)
                training, validation = (read_head_set(paths, config.heads, cache) for paths in parts)
                return _TrainingData(learn, held_out, left_out, training, validation)
            return _TrainingData(
                learn,
                held_out,
                left_out,
                healthy_slices(learn, config.data, cache, on_case),
                healthy_slices(held_out, config.data, cache, on_case),
            )

    def _fit(
        self, data: _TrainingData, device: torch.device, on_progress: Callable[[Progress], None] | None
    ) -> FitResult:
        """Train the network, or collect the statistics of a baseline without one."""
        config = self.config
        if config.method in UNTRAINED:
            baseline = build_scan_baseline(config)
            unreadable = {name for name, _ in data.training.failed}
            baseline.fit(healthy_scans([case for case in data.learn if case.id not in unreadable]))
            return FitResult(baseline.state_dict(), math.nan, 0, None)
        resume = self.resume or processes.restarted()
        goes_on = resume and checkpoint_path(self.run_dir).is_file()
        init = None if goes_on else config.train.init
        initial = load_model_folder(resolve_model(init)).weights if init else None
        return fit(
            config,
            data.training,
            data.validation,
            self.run_dir,
            device=device,
            resume=resume,
            initial=initial,
            on_progress=on_progress,
        )

    def _finish(self, data: _TrainingData, result: FitResult, device: torch.device) -> None:
        """Write the model folder, calibrate it and write `run.json`."""
        config = self.config
        model = self.run_dir / "model"
        described = describe_slices(data.training, data.validation)
        text = card.model_card(config, data=described, steps=result.steps, loss=result.best_loss)
        save_model(model, result.weights, config, None, text)
        unreadable = {name for name, _ in data.validation.failed}
        healthy = [case for case in data.held_out if case.label is None and case.id not in unreadable]
        calibrate_held_out(model, str(device), healthy, "of training")
        arguments = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "config"}
        record = run_record(
            "train",
            arguments,
            seed=config.train.seed,
            device=str(device),
            hashes={"model": verify_model_folder(model), "config": config_hash(config)},
            slices=described,
            failed=[*data.training.failed, *data.validation.failed],
            left_out=as_facts(data.left_out),
            pace=asdict(result.pace) if result.pace else None,
        )
        write_run(self.run_dir, record)


@dataclass(frozen=True)
class _TrainingData:
    """Training and held-out scans and slices, and files left out; label maps of heads come without scans."""

    learn: Sequence[Case]
    held_out: Sequence[Case]
    left_out: Sequence[LeftOut]
    training: SliceSet | HeadSet
    validation: SliceSet | HeadSet


def train(  # noqa: PLR0913  the public door: a keyword per attribute of the job
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
    on_progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Train on healthy scans, calibrate on the held-out ones, and write a model folder.

    Rows with `split` "train" or "training" are for training, and rows with "val", "valid", "validation" or "dev" for
    the choice of weights and the threshold, in upper or lower case. Rows of other splits are not used. Without rows for
    validation, `data.validation_fraction` of the subjects is held out. Slices that touch a lesion label are left out
    and counted; scans with a label are never used for calibration.

    Args:
        config: Configuration.
        source: Scans, see :func:`maediff.data.cases.search_cases`.
        run_dir: Gets `model/`, `log.csv`, `pictures/`, `checkpoints/`, `config.yaml` and `run.json`.
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
        InputError: No usable scan, splits of which none is for training, or a subject in training and in validation.
        OutputError: The run folder cannot be written, or another training writes there.
        TrainingInterrupted: On SIGINT or SIGTERM, after saving.
    """
    job = TrainJob(
        config,
        Path(source),
        Path(run_dir),
        resume=resume,
        device=device,
        split=split,
        channel=channel,
        pattern=pattern,
    )
    return job.run(on_case, on_progress)


@contextlib.contextmanager
def _sole_training(run_dir: Path) -> Iterator[None]:
    """Lock a run folder and remove half-written files of a killed training, in the main process only."""
    if not processes.is_main():
        yield
        return
    with folder_lock(run_dir):
        for name in ("config.yaml", "run.json", "log.csv", "model", "checkpoints/last.pt"):
            remove_leftovers(run_dir / name)
        remove_staged(run_dir / "model")
        for half_written in (run_dir / "cache").glob(".slices-*.npz"):
            half_written.unlink(missing_ok=True)
        yield


def split_cases(cases: Sequence[Case], config: Config, split: str | None) -> tuple[list[Case], list[Case]]:
    """Split cases into training and held-out ones, never dividing a subject.

    Args:
        cases: All scans.
        config: `data.validation_fraction` and `train.seed` decide who is held out if no scan is for validation.
        split: Learn from scans of this split instead of "train"; scans of validation splits are never learned from.

    Raises:
        InputError: Too few subjects, no scan to learn from, splits of which none is for training, or a subject in
            training and in validation.
    """
    held_out = [case for case in cases if _is_of(case, _VALIDATION_NAMES)]
    learn = _to_learn([case for case in cases if not _is_of(case, _VALIDATION_NAMES)], split)
    if not learn:
        which = f"has split {split!r}" if split else "is left"
        raise InputError(
            f"no scan {which} to learn from; splits here: {_splits(cases)}. Those named val, valid, validation or dev "
            "are held out"
        )
    shared = {case.subject for case in learn} & {case.subject for case in held_out}
    if shared:
        raise InputError(
            f"subjects {listed(sorted(shared))} have scans both to learn from and held out; give all scans of a "
            "subject the same split"
        )
    if not held_out:
        subjects = sorted({case.subject for case in learn})
        if len(subjects) < 2:
            raise InputError(f"{len(subjects)} subject to train on; at least 2 are needed, one of them for validation")
        count = min(max(1, round(config.data.validation_fraction * len(subjects))), len(subjects) - 1)
        order = np.random.default_rng(config.train.seed).permutation(len(subjects))
        chosen = {subjects[index] for index in order[:count]}
        held_out = [case for case in learn if case.subject in chosen]
        learn = [case for case in learn if case.subject not in chosen]
    return learn, held_out


def _to_learn(cases: Sequence[Case], split: str | None) -> list[Case]:
    """Choose what to learn from: the scans of a split, else those for training, else all if no split is named.

    Raises:
        InputError: Splits are named, and none of them is for training: they may be test scans.
    """
    if split:
        return [case for case in cases if case.split == split]
    if not any(case.split for case in cases):
        return list(cases)
    learn = [case for case in cases if _is_of(case, _TRAINING_NAMES)]
    if not learn:
        raise InputError(
            f"no scan has the split train or training; other splits here: {_splits(cases)}. Rename the one to learn "
            "from, or choose it with --split (split= in Python)"
        )
    return learn


def _is_of(case: Case, names: frozenset[str]) -> bool:
    """Check whether a case's split has one of some names, in upper or lower case."""
    return (case.split or "").lower() in names


def _splits(cases: Sequence[Case]) -> str:
    return listed(sorted({case.split or "(none)" for case in cases}))


def describe_slices(training: SliceSet | HeadSet, validation: SliceSet | HeadSet) -> str:
    """Describe the training data in a sentence, with counts."""
    if isinstance(training, HeadSet) or isinstance(validation, HeadSet):
        return f"samples drawn from {len(training.subjects)} label maps of heads, {len(validation.subjects)} held out"
    text = (
        f"{len(training)} slices of {len(set(training.subjects))} subjects to learn from, "
        f"{len(validation)} of {len(set(validation.subjects))} held out"
    )
    left_out = training.left_out + validation.left_out
    if left_out:
        text += f"; {left_out} slices with a lesion label left out"
    failed = len(training.failed) + len(validation.failed)
    return text + (f"; {failed} scans could not be read" if failed else "")
