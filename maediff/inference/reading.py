"""Read from a scan, before it is scored, its brain if no mask is given, and the sign of lesions on its contrast."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from maediff.config import Config
from maediff.notes import Information
from maediff.scoring import Sign, fixed_sign
from maediff.typing import BoolArray
from maediff.volume import Volume
from maediff.working import WorkingScan
from maediff.working.contrast import ContrastReading, read_contrast
from maediff.working.foreground import Surroundings


@dataclass(frozen=True)
class Steps:
    """Automatic steps on a scan, for its sidecar, and notes for the user.

    Attributes:
        record: Facts of each step; empty if there were none.
        notes: Notes for the user.
    """

    record: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __add__(self, other: Steps) -> Steps:
        """Join the steps of two stages."""
        return Steps(self.record | other.record, (*self.notes, *other.notes))


def find_brain(
    volume: Volume, config: Config, surroundings: Surroundings | None = None
) -> tuple[BoolArray | None, Steps]:
    """Extract the brain of a whole head; None if the scan is skull-stripped, or if `infer.strip` is never.

    Args:
        volume: A scan without a brain mask.
        config: `infer.strip` is used.
        surroundings: Of the scan, if they were looked at before.

    Raises:
        InputError: The scan shows a whole head, and no brain was found in it.
    """
    if config.infer.strip == "never" or not (surroundings or Surroundings(volume)).whole_head:
        return None, Steps()
    from maediff import extraction  # loads a network, which stripped scans do not need

    found = extraction.extract_brain(volume)
    ml = float(found.mask.sum()) * volume.voxel_mm3 / 1000
    facts = {"method": "extraction", "volume_ml": round(ml, 1), "certainty": round(found.certainty, 4)}
    if found.slice_mm is not None:
        facts["assumed_slice_mm"] = round(found.slice_mm, 2)
    said = "the scan shows a whole head: the packaged brain extraction found its brain; look at the mask"
    return found.mask, Steps({"brain_mask": facts}, (Information(said), *found.notes))


@dataclass(frozen=True)
class Reading:
    """How the residual of a scan is scored.

    Attributes:
        sign: Sign of the differences from healthy that count.
        contrast: The likeliest kind of contrast with that sign, whose calibration applies; empty if both signs count,
            if it was not read, or if channels differ.
        steps: What was read, and notes for the user.
    """

    sign: Sign
    contrast: str = ""
    steps: Steps = field(default_factory=Steps)


def read_sign(
    volume: Volume,
    others: Sequence[Volume],
    prepared: WorkingScan,
    config: Config,
    calibrated: Collection[str] = (),
) -> Reading:
    """Resolve `score.sign`, and read the contrast if the sign or the calibration needs it.

    With `score.sign` auto the sign is that of lesions on the contrast that is read, or abs if the channels of a scan
    differ in their sign, since their residuals are averaged. A fixed sign limits the contrasts to those of that sign.

    Args:
        volume: The scan, of several channels the first.
        others: Further channels on the same voxels.
        prepared: The scan on its working grid.
        config: `score.sign` is used.
        calibrated: Kinds of contrast that have their own calibration.
    """
    auto = config.score.sign == "auto"
    if not auto and not calibrated:
        return Reading(fixed_sign(config.score))
    readings = [read_contrast(item.data, prepared.native_mask, volume.spacing_mm) for item in (volume, *others)]
    if not auto:
        sign = fixed_sign(config.score)
        kind = readings[0].among(sign)
        said = f"the calibration of {kind.upper()} holds, of the contrasts with this sign the one most alike"
        told = (Information(said),) if kind else ()
        return Reading(sign, kind, Steps({"contrast": _facts(readings), "sign": sign}, told))
    signs = {reading.lesion_sign for reading in readings}
    sign = signs.pop() if len(signs) == 1 else "abs"
    kinds = ", ".join(max(reading.probabilities, key=reading.probabilities.__getitem__) for reading in readings).upper()
    said = {
        "bright": f"the contrast reads as {kinds}: the map shows what is brighter than healthy",
        "dark": f"the contrast reads as {kinds}: the map shows what is darker than healthy",
        "abs": f"the contrast is not sure enough (most like {kinds}): the map shows what is brighter or darker",
    }[sign] + " (--sign overrides it)"
    note = said if sign == "abs" else Information(said)
    steps = Steps({"contrast": _facts(readings), "sign": sign}, (note,))
    likeliest = {reading.among(sign) for reading in readings}
    return Reading(sign, likeliest.pop() if len(likeliest) == 1 else "", steps)


def _facts(readings: Sequence[ContrastReading]) -> Any:
    facts = [{"kind": reading.kind, "probabilities": reading.probabilities} for reading in readings]
    return facts[0] if len(facts) == 1 else facts
