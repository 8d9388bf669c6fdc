"""Set a model's threshold from healthy scans."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maediff import card
from maediff.calibration import Calibration, calibrate, count_scans
from maediff.config import override
from maediff.data.cases import Case, search_cases
from maediff.data.check import fault
from maediff.errors import InputError, ModelError
from maediff.inference.load import load_model
from maediff.inference.locations import fit_locations, left_out_maps
from maediff.inference.predictor import Predictor
from maediff.inputcheck import HealthyScan
from maediff.locking import folder_lock
from maediff.model_folder import own_model, update_calibration, verify_model_folder
from maediff.staging import CARD
from maediff.typing import BoolArray, FloatMap
from maediff.working import WorkingScan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrateJob:
    """A calibration; its attributes are the arguments of :func:`calibrate_model`."""

    model: str | Path
    source: str | Path
    device: str = "auto"
    split: str | None = None
    channel: str | None = None
    pattern: str | None = None
    rate: float | None = None
    locations: bool = False

    def run(self, on_case: Callable[[str], None] | None = None) -> Calibration:
        """Calibrate; errors are those of :func:`calibrate_model`."""
        folder = own_model(self.model)
        with folder_lock(folder):
            return self._calibrate(folder, on_case)

    def _calibrate(self, folder: Path, on_case: Callable[[str], None] | None) -> Calibration:
        stored = load_model(folder, self.device)
        config = override(stored.config, [f"score.locations={str(self.locations).lower()}"])
        predictor = replace(stored, config=config, locations=None, calibration=None)  # nothing of an earlier one counts
        found = search_cases(
            self.source,
            split=self.split,
            channel=self.channel,
            channels=config.data.channels,
            pattern=self.pattern,
            splits=False,
        )
        cases = found.cases
        labelled = [case.id for case in cases if case.label]
        if labelled:
            raise InputError(
                f"{len(labelled)} of {len(cases)} scans have a lesion label ({', '.join(labelled[:3])}, …); "
                "calibrate on healthy scans only: remove those rows"
            )
        faults = [f"{case.id}: {wrong}" for case in cases if (wrong := fault(case)) is not None]
        if faults:
            raise InputError(
                f"{len(faults)} of {len(cases)} scans cannot be read, and a threshold must not rest on fewer scans "
                f"than given; mend them or remove them from {self.source}: {'; '.join(faults)}"
            )
        origin = count_scans(len(cases), "healthy")
        return calibrate_folder(folder, predictor, cases, origin, rate=self.rate, on_case=on_case)


def calibrate_model(  # noqa: PLR0913  the public door: a keyword per attribute of the job
    model: str | Path,
    source: str | Path,
    *,
    device: str = "auto",
    split: str | None = None,
    channel: str | None = None,
    pattern: str | None = None,
    rate: float | None = None,
    locations: bool = False,
    on_case: Callable[[str], None] | None = None,
) -> Calibration:
    """Set a model's threshold from healthy scans and store it in the model folder.

    With `locations` the model also stores their residuals by place, and its maps are in standard deviations above these
    from then on. The threshold then comes from maps that use the statistics of other subjects only. Without, earlier
    residuals by place are removed.

    Args:
        model: Model folder; a packaged model, given by its name, is refused: copy it first.
        source: Healthy scans; rows with a lesion label are refused.
        device: Where to compute.
        split: Use only rows of this split.
        channel: Which `image_<channel>` column of a table.
        pattern: Which files of a folder are scans, see :func:`maediff.data.cases.search_cases`.
        rate: Share of healthy brain voxels above the threshold; the model's `score.false_positive_rate` if None.
        locations: Also collect healthy residuals by place; the scans must lie in one template's space.
        on_case: Called with the name of each scan.

    Raises:
        ConfigError: ``rate`` is outside (0, 1), or the model is a packaged one.
        InputError: No healthy scan, or a scan that cannot be used: a threshold must not rest on fewer scans than given.
        GeometryError: With `locations`, a scan whose header does not place it in a template's space.
        ModelError: No sound model, or it was replaced while it was calibrated.
        OutputError: The folder cannot be written, or another run writes there.
    """
    job = CalibrateJob(
        model,
        source,
        device=device,
        split=split,
        channel=channel,
        pattern=pattern,
        rate=rate,
        locations=locations,
    )
    return job.run(on_case)


def calibrate_held_out(
    folder: Path, device: str, cases: Sequence[Case], origin: str, on_case: Callable[[str], None] | None = None
) -> Calibration | None:
    """Set the threshold of a new model from held-out scans; what they lack costs the threshold, not the training.

    Args:
        folder: The model folder.
        device: Where to compute.
        cases: Held-out scans without a lesion.
        origin: Where the threshold comes from, less the number of scans in front: "of training".
        on_case: Called with the name of each scan.

    Returns:
        None, after a warning, if there is no scan or one is refused.
    """
    if not cases:
        log.warning("no held-out scan is wholly healthy: the model has no threshold; run `maediff calibrate`")
        return None
    origin = f"{count_scans(len(cases), 'held-out healthy')} {origin}"
    try:
        return calibrate_folder(folder, load_model(folder, device), cases, origin, on_case=on_case)
    except InputError as error:
        log.warning("the model has no threshold: %s; run `maediff calibrate`", error)
        return None


def calibrate_folder(
    folder: Path,
    predictor: Predictor,
    cases: Sequence[Case],
    origin: str,
    *,
    rate: float | None = None,
    on_case: Callable[[str], None] | None = None,
) -> Calibration:
    """Set the threshold of a model folder from the maps of healthy scans, and store it there.

    Args:
        folder: The model folder.
        predictor: Its model; with `score.locations` the residuals by place are collected first.
        cases: Healthy scans.
        origin: Where the threshold comes from, for the card.
        rate: Share of healthy brain voxels above it; the model's own if None.
        on_case: Called with the name of each scan.

    Raises:
        ModelError: The folder holds another model than `predictor` by now.
    """
    healthy: list[HealthyScan] = []
    contrasts: list[str] = []
    forms: list[str] = []

    def maps() -> Iterator[tuple[FloatMap, BoolArray, float]]:
        for case in cases:
            if on_case:
                on_case(case.id)
            result = predictor.predict(case.images, case.mask)
            healthy.extend([result.measures] if result.measures else [])
            contrasts.append(result.contrast)
            forms.append(result.form)
            yield result.anomaly, result.brain_mask, result.score

    def keep(scan: WorkingScan, values: FloatMap) -> None:
        healthy.append(predictor.measured(scan, values))

    usual = predictor.config.score.false_positive_rate
    rate = usual if rate is None else rate
    locations = None
    if predictor.config.score.locations:
        with tempfile.TemporaryDirectory(prefix="maediff-") as kept:
            locations = fit_locations(predictor, cases, Path(kept), on_case)
            found = calibrate(left_out_maps(predictor, cases, locations, Path(kept), keep), rate, origin=origin)
    else:
        found = calibrate(maps(), rate, origin=origin, contrasts=contrasts, forms=forms)
    found = replace(found, healthy=tuple(scan.to_dict() for scan in healthy))
    described, content = (locations.described, locations.to_bytes()) if locations else (None, None)
    if verify_model_folder(folder) != predictor.model_hash:
        raise ModelError(f"the model in {folder} was replaced while it was calibrated; calibrate it again")
    text = card.with_calibration((folder / CARD).read_text(encoding="utf-8"), found, described)
    update_calibration(folder, found.to_dict(), card=text, locations=content)
    return found
