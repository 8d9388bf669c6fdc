"""Adapt a model to a site with a few healthy scans: low-rank updates, early stopping, calibration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maediff import card
from maediff.calibration import Calibration, count_scans
from maediff.config import UNTRAINED, Config, override
from maediff.data.cases import Case, search_cases
from maediff.data.slices import SliceSet, healthy_slices
from maediff.errors import ConfigError, InputError, ModelError
from maediff.hardware import kept_random_state, resolve_device, usual_defaults
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.jobs.calibrate import calibrate_folder
from maediff.jobs.train import describe_slices, split_cases
from maediff.locking import folder_lock
from maediff.low_rank import Adapter, attach, detached
from maediff.methods.base import Method
from maediff.model_folder import StoredModel, load_model_folder, resolve_model, save_adapted
from maediff.training.tune import Schedule, Tuned, tune

log = logging.getLogger(__name__)
_LEAST_SUBJECTS = 3
_HELD_OUT = 0.3
"""Share of subjects held out for early stopping and for the threshold. [ours]"""
_PSEUDO_LESIONS = 0.8
"""Share of slices with pseudo-lesions for a model that learned from label maps, whose lesions real scans lack. Without
any, it would forget how to remove them. [ours]"""
_SUSPICIOUS = (1.25, 5.0)
"""A scan-level score is suspicious if it exceeds both limits: a multiple of the median, and a number of deviations
above it. [ours]"""


@dataclass(frozen=True)
class Adapted:
    """An adapted model and how it was fitted.

    Attributes:
        folder: Its model folder.
        tuned: Steps and losses.
        calibration: Threshold of this site; None if no held-out scan is wholly healthy.
        suspects: Scans whose score under the base is far above that of the others; they may hold lesions.
    """

    folder: Path
    tuned: Tuned
    calibration: Calibration | None
    suspects: tuple[str, ...]


@dataclass(frozen=True)
class AdaptJob:
    """An adaptation; its attributes are the arguments of :func:`adapt_model`."""

    model: str | Path
    source: str | Path
    out: str | Path
    rank: int = 4
    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    device: str = "auto"
    split: str | None = None
    channel: str | None = None
    pattern: str | None = None

    @usual_defaults()
    def run(
        self,
        on_case: Callable[[str], None] | None = None,
        on_step: Callable[[int, float | None], None] | None = None,
    ) -> Adapted:
        """Adapt; errors are those of :func:`adapt_model`."""
        device, base, out = resolve_device(self.device), resolve_model(self.model), Path(self.out)
        stored = load_model_folder(base)
        check_adaptable(stored, base)
        config = tuning_config(stored.config, self.seed)
        network = load_model(base, self.device).network
        with kept_random_state(device):
            torch.manual_seed(self.seed)
            parameters = attach(network, self.rank)
        Adapter(detached(network), {}).check_size()
        learn, held_out = self._cases(config)
        with folder_lock(out):
            suspects = suspicious(load_model(base, self.device), [*learn, *held_out], on_case)
            data = healthy_slices(learn, config.data), healthy_slices(held_out, config.data)
            tuned = tune(network, parameters, data, config, self.schedule, on_step=on_step)
            self._save(base, stored.config, network, data, tuned)
            unreadable = {name for name, _ in data[1].failed}
            healthy = [case for case in held_out if case.label is None and case.id not in unreadable]
            calibration = self._calibrated(out, healthy, on_case)
        return Adapted(out, tuned, calibration, suspects)

    def _cases(self, config: Config) -> tuple[list[Case], list[Case]]:
        found = search_cases(
            self.source, channel=self.channel, channels=config.data.channels, pattern=self.pattern, exclude=[self.out]
        )
        subjects = {case.subject for case in found.cases}
        if len(subjects) < _LEAST_SUBJECTS:
            raise InputError(
                f"{len(subjects)} subjects are too few to adapt to; give healthy scans of {_LEAST_SUBJECTS} or more, "
                "some of which are held out to tell when to stop"
            )
        return split_cases(found.cases, config, self.split)

    def _save(self, base: Path, config: Config, network: Method, data: tuple[SliceSet, SliceSet], tuned: Tuned) -> None:
        described = describe_slices(*data)
        text = card.model_card(
            config,
            data=f"those of the base `{base.name}`, adapted with low-rank updates (rank {self.rank}) to {described}",
            steps=tuned.steps,
            loss=tuned.loss_after,
        )
        facts: dict[str, Any] = {"rank": self.rank, "seed": self.seed, "slices": described, **asdict(tuned)}
        measured = override(config, ["score.locations=false"])  # residuals by place are those of the base
        save_adapted(self.out, Adapter(detached(network), facts), base, measured, text)

    def _calibrated(
        self, out: Path, healthy: Sequence[Case], on_case: Callable[[str], None] | None
    ) -> Calibration | None:
        """Set the threshold from held-out scans; residuals by place need more scans (`calibrate --locations`)."""
        if not healthy:
            log.warning("no held-out scan is wholly healthy: the model has no threshold; run `maediff calibrate`")
            return None
        predictor = load_model(out, self.device)
        origin = f"{count_scans(len(healthy), 'held-out healthy')} of the site it was adapted to"
        return calibrate_folder(out, predictor, healthy, origin, on_case=on_case)


def adapt_model(  # noqa: PLR0913  the public door: a keyword per attribute of the job
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    rank: int = 4,
    schedule: Schedule | None = None,
    seed: int = 0,
    device: str = "auto",
    split: str | None = None,
    channel: str | None = None,
    pattern: str | None = None,
    on_case: Callable[[str], None] | None = None,
    on_step: Callable[[int, float | None], None] | None = None,
) -> Adapted:
    """Adapt a model to a few healthy scans of a site, and write an adapted model.

    The base is frozen; its linear and convolution layers get low-rank updates. Subjects are held out as in a training
    (`split`, or 30 % of them); they decide when to stop and set the threshold. Slices with a lesion label are left out.

    Args:
        model: Base; not an adapted model.
        source: Healthy scans of at least three subjects.
        out: Where to write the adapted model.
        rank: Rank of the updates.
        schedule: How long and how fast to train.
        seed: Seed of the samples, the start and the choice of held-out subjects.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        split: Learn from rows of this split instead of "train".
        channel: Which `image_<channel>` column of a table.
        pattern: Which files of a folder are scans, see :func:`maediff.data.cases.search_cases`.
        on_case: Called with the name of each scan.
        on_step: Called with each step, and the validation loss if there is a new one.

    Raises:
        ConfigError: The method has no network, or the rank fits no layer or gives too large a file.
        ModelError: The base cannot be used, or is adapted itself.
        InputError: Too few scans, or none that can be used.
        OutputError: The folder cannot be written.
    """
    chosen = schedule or Schedule()
    job = AdaptJob(
        model,
        source,
        out,
        rank=rank,
        schedule=chosen,
        seed=seed,
        device=device,
        split=split,
        channel=channel,
        pattern=pattern,
    )
    return job.run(on_case, on_step)


def check_adaptable(stored: StoredModel, folder: Path) -> None:
    """Refuse models that cannot be adapted.

    Raises:
        ConfigError: The method has no network.
        ModelError: It is adapted already.
    """
    if stored.config.method in UNTRAINED:
        raise ConfigError(f"method {stored.config.method!r} has no network to adapt; run `maediff train` again instead")
    if stored.base is not None:
        raise ModelError(
            f"{folder} is adapted already, and adapters are not stacked; adapt its base {stored.base}, or merge first: "
            f"maediff adapt -m {folder} --merge -o MODEL"
        )


def tuning_config(config: Config, seed: int) -> Config:
    """Configure the samples of a short training on real scans, from the configuration of a trained model."""
    changes = [f"train.seed={seed}", f"data.validation_fraction={_HELD_OUT}"]
    if config.heads.enabled:
        changes += ["heads.enabled=false", f"lesions.share={_PSEUDO_LESIONS}"]
    return override(config, changes)


def suspicious(
    predictor: Predictor, cases: Sequence[Case], on_case: Callable[[str], None] | None = None
) -> tuple[str, ...]:
    """Return scans that the model scores far above the others, with a warning: lesions must not be learned as healthy.

    Scans with a lesion label are left out, since their lesions are known. So are scans that cannot be read, which
    training lists.
    """
    scores = {}
    for case in cases:
        if case.label is None:
            if on_case:
                on_case(case.id)
            try:
                scores[case.id] = predictor.predict(case.images, case.mask).score
            except (InputError, OSError) as error:
                log.warning("no score of %s: %s", case.id, error)
    found = outliers(scores)
    if found:
        log.warning(
            "%s scored far above the other scans (%s): look at them; a lesion among the healthy scans is learned as "
            "healthy",
            count_scans(len(found), "healthy"),
            ", ".join(f"{name} {scores[name]:.3g}" for name in found),
        )
    return found


def outliers(scores: dict[str, float]) -> tuple[str, ...]:
    """Return the names of scores that are far above the others.

    Example:
        >>> outliers({"a": 0.50, "b": 0.55, "c": 0.52, "d": 1.4})
        ('d',)
        >>> outliers({"a": 0.50, "b": 0.5, "c": 0.55})
        ()
    """
    if not scores:
        return ()
    values = np.array(list(scores.values()))
    median = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - median)))
    limit = max(_SUSPICIOUS[0] * median, median + _SUSPICIOUS[1] * spread)
    return tuple(name for name, score in scores.items() if score > limit)
