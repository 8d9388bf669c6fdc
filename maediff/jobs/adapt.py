"""Adapt a model with a few healthy scans: low-rank updates or a side network, early stopping, calibration."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from maediff import card
from maediff.calibration import Calibration, count_scans
from maediff.config import EDGES, UNTRAINED, Config, override
from maediff.data.cases import Case, search_cases
from maediff.data.check import fault
from maediff.data.slices import SliceSet, healthy_slices
from maediff.errors import ConfigError, InputError, ModelError
from maediff.hardware import kept_random_state, resolve_device, usual_defaults
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.inference.reading import find_brain
from maediff.jobs.calibrate import calibrate_held_out
from maediff.jobs.train import describe_slices, split_cases
from maediff.locking import folder_lock
from maediff.low_rank import Adapter, attach, detached
from maediff.methods.base import Method
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.model_folder import StoredModel, check_beside, load_model_folder, resolve_model, save_adapted
from maediff.training.rehearsal import Rehearsal
from maediff.training.tune import Schedule, Tuned, tune
from maediff.volume import read_nifti, write_like

log = logging.getLogger(__name__)
Kind = Literal["lora", "controlnet", "t2i"]
_LEAST_SUBJECTS = 3
_HELD_OUT = 0.3
"""Share of subjects held out for early stopping and for the threshold. [ours]"""
_PSEUDO_LESIONS = 0.8
"""Share of slices with pseudo-lesions for a model that learned from label maps, whose lesions real scans lack. Without
any, it would forget how to remove them. [ours]"""
_ENOUGH = 10
"""Healthy scans of a calibration from which on it says something that a scan scores above all of them."""
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
    kind: Kind = "lora"
    guide: str = EDGES
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
        check_beside(base, out)
        stored = load_model_folder(base)
        check_adaptable(stored, base)
        config = self._steered(tuning_config(stored.config, self.seed))
        network, parameters = self._attached(base, stored, config, device)
        Adapter(self._updates(network), {}).check_size()
        learn, held_out = self._cases(config)
        with folder_lock(out), TemporaryDirectory() as folder:
            cases = with_brains([*learn, *held_out], config, Path(folder), on_case)
            learn, held_out = cases[: len(learn)], cases[len(learn) :]
            shipped = load_model(base, self.device)
            suspects = suspicious(shipped, [*learn, *held_out], on_case)
            contrasts = {"contrasts": list(contrasts_of(shipped, learn))}
            data = healthy_slices(learn, config.data), healthy_slices(held_out, config.data)
            kept = rehearsal_of(shipped, config)
            tuned = tune(network, parameters, data, config, self.schedule, rehearsal=kept, on_step=on_step)
            self._save(base, self._steered(stored.config), network, data, asdict(tuned) | contrasts)
            unreadable = {name for name, _ in data[1].failed}
            healthy = [case for case in held_out if case.label is None and case.id not in unreadable]
            calibration = calibrate_held_out(out, self.device, healthy, "of the site it was adapted to", on_case)
        return Adapted(out, tuned, calibration, suspects)

    def _steered(self, config: Config) -> Config:
        """Add the side network of this job to the base's configuration."""
        return config if self.kind == "lora" else with_side(config, self.kind, self.guide, self.channel)

    def _attached(
        self, base: Path, stored: StoredModel, config: Config, device: torch.device
    ) -> tuple[Method, list[nn.Parameter]]:
        """Build the base with fresh updates, which leave it as it is, and list what is to be trained."""
        if self.kind == "lora":
            network = load_model(base, self.device).network
            with kept_random_state(device):
                torch.manual_seed(self.seed)
                return network, attach(network, self.rank)
        with kept_random_state(torch.device("cpu")):
            torch.manual_seed(self.seed)
            steered = Reconstructor(config)
        steered.load_state_dict({name: value.float() for name, value in stored.weights.items()}, strict=False)
        parameters = steered.start_side()
        steered.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return steered.eval(), parameters

    def _updates(self, network: Method) -> dict[str, Tensor]:
        """Copy what was trained, by the names that its tensors have in the network."""
        if self.kind == "lora":
            return detached(network)
        trained = {name for name, value in network.named_parameters() if value.requires_grad}
        return {name: value.cpu().clone() for name, value in network.state_dict().items() if name in trained}

    def _cases(self, config: Config) -> tuple[list[Case], list[Case]]:
        channel = None if self.kind != "lora" and self.guide != EDGES else self.channel  # one of data.channels then
        found = search_cases(
            self.source, channel=channel, channels=config.data.channels, pattern=self.pattern, exclude=[self.out]
        )
        cases = [case for case in found.cases if _readable(case)]
        subjects = {case.subject for case in cases}
        if len(subjects) < _LEAST_SUBJECTS:
            raise InputError(
                f"{len(subjects)} subjects are too few to adapt to; give healthy scans of {_LEAST_SUBJECTS} or more, "
                "some of which are held out to tell when to stop"
            )
        return split_cases(cases, config, self.split)

    def _save(
        self, base: Path, config: Config, network: Method, data: tuple[SliceSet, SliceSet], found: dict[str, Any]
    ) -> None:
        described = describe_slices(*data)
        lora = self.kind == "lora"
        what = f"low-rank updates (rank {self.rank})" if lora else f"a side network ({self.kind}, guide {self.guide})"
        own = {"rank": self.rank} if lora else {"kind": self.kind, "guide": self.guide}
        text = card.model_card(
            override(config, [f"train.seed={self.seed}"]),
            data=f"those of the base `{base.name}`, adapted with {what} to {described}",
            steps=found["steps"],
            loss=found["loss_after"],
        )
        facts: dict[str, Any] = {**own, "seed": self.seed, "slices": described, **found}
        measured = override(config, ["score.locations=false"])  # residuals by place are those of the base
        save_adapted(self.out, Adapter(self._updates(network), facts), base, measured, text)


def adapt_model(  # noqa: PLR0913  the public door: a keyword per attribute of the job
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    kind: Kind = "lora",
    guide: str = EDGES,
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
    """Adapt a model with a few healthy scans, and write an adapted model.

    The base is frozen. Its linear and convolution layers get low-rank updates, or a side network that sees a second
    image steers it. Subjects are held out as in a training (`split`, or 30 % of them); they decide when to stop and set
    the threshold. Slices with a lesion label are left out.

    Args:
        model: Base; not an adapted model.
        source: Healthy scans of at least three subjects.
        out: Where to write the adapted model.
        kind: "lora" for low-rank updates; "controlnet" or "t2i" for a side network.
        guide: What a side network sees: "edges" of the scan, or the name of another channel of the table.
        rank: Rank of low-rank updates.
        schedule: How long and how fast to train.
        seed: Seed of the samples, the start and the choice of held-out subjects.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        split: Learn from rows of this split instead of "train".
        channel: Which `image_<channel>` column of a table; of a guide's table, the one that is reconstructed.
        pattern: Which files of a folder are scans, see :func:`maediff.data.cases.search_cases`.
        on_case: Called with the name of each scan.
        on_step: Called with each step, and the validation loss if there is a new one.

    Raises:
        ConfigError: The method has no network, or none that can be steered; the rank fits no layer or gives too large
            a file; or the guide cannot be told from what is reconstructed.
        ModelError: The base cannot be used, or is adapted itself.
        InputError: Too few scans, or none that can be used.
        OutputError: The folder cannot be written.
    """
    chosen = schedule or Schedule()
    job = AdaptJob(
        model,
        source,
        out,
        kind=kind,
        guide=guide,
        rank=rank,
        schedule=chosen,
        seed=seed,
        device=device,
        split=split,
        channel=channel,
        pattern=pattern,
    )
    return job.run(on_case, on_step)


def _readable(case: Case) -> bool:
    """Check whether a scan can be read; if not, say why in a warning, so that it neither counts nor is held out."""
    wrong = fault(case)
    if wrong is not None:
        log.warning("%s is left out: %s", case.id, wrong)
    return wrong is None


def check_adaptable(stored: StoredModel, folder: Path) -> None:
    """Refuse models that cannot be adapted.

    Raises:
        ConfigError: The method has no network.
        ModelError: It is adapted already.
    """
    if stored.config.method in UNTRAINED:
        raise ConfigError(f"method {stored.config.method!r} has no network to adapt; run `maediff train` again instead")
    if stored.config.method == "volumetric":
        raise ConfigError(
            "a volumetric model learns from drawn volumes alone and cannot be adapted to slices; adapt a "
            "model of slices, or go on with its label maps: maediff train -c volumetric -i LABEL_MAPS -o RUN --set "
            "train.init=MODEL"
        )
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


def rehearsal_of(base: Predictor, config: Config) -> Rehearsal | None:
    """Let a model that learned from label maps keep what it knows of lesions and contrasts; None for other models.

    Args:
        base: The model, whose network is asked and must not be the one that is trained.
        config: From :func:`tuning_config`.
    """
    if not base.config.heads.enabled or not isinstance(base.network, Reconstructor):
        return None
    return Rehearsal(base.network, config)


def with_side(config: Config, kind: Kind, guide: str, channel: str | None = None) -> Config:
    """Add a side network to the configuration of a trained model.

    Args:
        config: Of the base.
        kind: "controlnet" or "t2i".
        guide: "edges", or the channel that it sees.
        channel: Name of the one channel that the base reconstructs, if the guide is another one.

    Raises:
        ConfigError: The base's method cannot be steered, or the guide cannot be told from what it reconstructs.
    """
    kinds, guides = (*config.structure.kinds, kind), (*config.structure.guides, guide)
    changes = [f"structure.kinds=[{', '.join(kinds)}]", f"structure.guides=[{', '.join(guides)}]", "structure.omega=[]"]
    if guide not in {EDGES, *config.structure.contrasts}:
        names = config.data.channels or ((channel,) if channel else ())
        if not names or guide in names:
            told = f"reconstructs {', '.join(names)}" if names else "does not name its channel"
            raise ConfigError(
                f"guide {guide!r} must be another channel than the model reconstructs, and this one {told}; choose "
                "another guide, or name the channel that is reconstructed (--channel)"
            )
        changes += [f"data.channels=[{', '.join((*names, guide))}]", "heads.enabled=false"]
    return override(config, changes)


def with_brains(
    cases: Sequence[Case], config: Config, folder: Path, on_case: Callable[[str], None] | None = None
) -> list[Case]:
    """Extract the brains of whole heads without a mask, as `infer` does (`infer.strip`), and say so in a warning.

    Scans that cannot be read, or in which no brain is found, stay as they are: training lists them.

    Args:
        cases: Scans.
        config: `infer.strip` is used.
        folder: Gets the masks that were found.
        on_case: Called with the name of each scan whose brain is extracted.
    """
    found = []
    for case in cases:
        mask = None
        if case.mask is None:
            try:
                volume = read_nifti(case.image)
                mask, _ = find_brain(volume, config)
            except (InputError, OSError) as error:
                log.warning("no brain of %s: %s", case.id, error)
        if mask is None:
            found.append(case)
            continue
        if on_case:
            on_case(case.id)
        path = folder / f"{hashlib.sha256(case.id.encode()).hexdigest()[:16]}.nii.gz"
        found.append(replace(case, mask=write_like(path, mask, volume, np.uint8)))
    heads = [new.id for old, new in zip(cases, found, strict=True) if old.mask is not new.mask]
    if heads:
        log.warning(
            "the packaged brain extraction found the brains of %s (%s); to look at them, and to correct them, run "
            "`maediff prepare` and adapt to its results",
            count_scans(len(heads), "whole-head"),
            ", ".join(heads),
        )
    return found


def suspicious(
    predictor: Predictor, cases: Sequence[Case], on_case: Callable[[str], None] | None = None
) -> tuple[str, ...]:
    """Return scans that the model scores far above the others, with a warning: lesions must not be learned as healthy.

    If half of them score above every healthy scan of the model's calibration, another warning says so. Scans with a
    lesion label are left out, since their lesions are known. So are scans that cannot be read, which training lists.
    """
    scores, beyond = {}, []
    for case in cases:
        if case.label is None:
            if on_case:
                on_case(case.id)
            try:
                own = case.images[: predictor.config.data.channel_count]  # without a guide that it does not know
                result = predictor.predict(own, case.mask)
                scores[case.id] = result.score
                if result.score_percentile == 1 and (result.healthy_scans or 0) >= _ENOUGH:
                    beyond.append(case.id)
            except (InputError, OSError) as error:
                log.warning("no score of %s: %s", case.id, error)
    if beyond and 2 * len(beyond) >= len(scores):
        log.warning(
            "%d of %s scored above every healthy scan of the base's calibration (%s): either all scans of this site "
            "look so, or these hold lesions, which are then learned as healthy; look at their maps",
            len(beyond),
            count_scans(len(scores), "healthy"),
            ", ".join(beyond),
        )
    found = outliers(scores)
    if found:
        log.warning(
            "%s scored far above the other scans (%s): look at them; a lesion among the healthy scans is learned as "
            "healthy",
            count_scans(len(found), "healthy"),
            ", ".join(f"{name} {scores[name]:.3g}" for name in found),
        )
    return found


def contrasts_of(predictor: Predictor, cases: Sequence[Case]) -> tuple[str, ...]:
    """Read the contrasts of scans; none for a model that has a fixed sign, and so one contrast anyway."""
    found = set()
    for case in cases if predictor.config.score.sign == "auto" else ():
        try:
            own = case.images[: predictor.config.data.channel_count]
            found.add(predictor.prepare(own, case.mask).reading.contrast)
        except (InputError, OSError) as error:
            log.debug("no contrast of %s: %s", case.id, error)  # training lists it
    return tuple(sorted(found - {""}))


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
