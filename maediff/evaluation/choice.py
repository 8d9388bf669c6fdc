"""A threshold that a person chooses after inference: masks, volumes and findings follow it, maps stay the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maediff.calibration import Calibration, with_threshold
from maediff.errors import ConfigError, InputError
from maediff.evaluation.outputs import Cut, OutputCase, read_anomaly_mask, read_outputs
from maediff.files import read_json
from maediff.volume import read_map


@dataclass(frozen=True)
class Choice:
    """Threshold and smallest finding that a person chooses instead of those of ``maediff infer``.

    Attributes:
        threshold: Threshold of the map, in its units.
        rate: Use the threshold that the run's calibration records for this false-positive rate.
        min_size_mm3: Smallest finding, mm³; that of infer if None.
    """

    threshold: float | None = None
    rate: float | None = None
    min_size_mm3: float | None = None

    def __bool__(self) -> bool:
        """Check whether anything was chosen."""
        return any(value is not None for value in (self.threshold, self.rate, self.min_size_mm3))


def read_chosen(out_dir: Path, choice: Choice | None = None) -> list[OutputCase]:
    """Read the cases of an infer output folder with the masks and volumes of a choice; no file is changed.

    Args:
        out_dir: Folder that ``maediff infer`` wrote.
        choice: The choice; None or an empty one reads the folder unchanged.

    Raises:
        InputError: The folder cannot be read.
        ConfigError: The threshold is not a number of at least 0, both threshold and rate are given, the run records no
            threshold for the rate, or a smallest size is given but there is no threshold.
    """
    cases = read_outputs(out_dir)
    if not choice:
        return cases
    record = read_json(out_dir / "run.json")
    return [_chosen(case, choice, record) if case.finished else case for case in cases]


def chosen_notice(cases: Sequence[OutputCase]) -> str:
    """Return a notice that a person chose the threshold of these cases; empty if nobody did."""
    origins = dict.fromkeys(
        str(case.sidecar.get("threshold_origin")) for case in cases if case.sidecar.get("threshold_given") is not None
    )
    if not origins:
        return ""
    said = f"A person chose the threshold ({'; '.join(origins)})"
    return f"{said}: what the calibration promises holds for its own threshold only."


def _chosen(case: OutputCase, choice: Choice, record: Mapping[str, Any]) -> OutputCase:
    threshold, origin = _threshold(case, choice, record)
    smallest = choice.min_size_mm3
    if smallest is not None:
        if not (math.isfinite(smallest) and smallest >= 0):
            raise ConfigError(f"the smallest finding must have 0 mm³ or more, not {smallest:g}")
        origin += f"; findings below {smallest:g} mm³ left out"
    else:
        smallest = float(case.sidecar.get("min_size_mm3") or 0)
    facts = {"threshold": threshold, "threshold_origin": origin, "threshold_given": threshold, "min_size_mm3": smallest}
    cut = replace(case, sidecar={**case.sidecar, **facts}, cut=Cut(threshold, smallest))
    anomaly = read_map(case.files["anomaly"])
    mask = np.asarray(read_anomaly_mask(cut, anomaly))
    return replace(cut, volume_ml=float(np.count_nonzero(mask)) * anomaly.voxel_mm3 / 1000)


def _threshold(case: OutputCase, choice: Choice, record: Mapping[str, Any]) -> tuple[float, str]:
    """Return the threshold of a case and its origin."""
    if choice.threshold is None and choice.rate is None:
        if case.threshold is None:
            raise ConfigError(f"{case.case} has no threshold that --min-size could apply to; give --threshold as well")
        return case.threshold, str(case.sidecar.get("threshold_origin") or "as infer used it")
    stored = record.get("calibration")
    calibration = Calibration.from_dict({**stored, "healthy": ()}) if isinstance(stored, Mapping) else None
    if choice.rate is not None and (record.get("hashes") or {}).get("model") != case.sidecar.get("model_hash"):
        raise InputError(
            f"run.json does not describe the model of {case.case}, so no threshold is known for rate {choice.rate:g}; "
            "give --threshold"
        )
    found = with_threshold(calibration, choice.threshold, choice.rate).of_contrast(*case.sort)
    return found.threshold, found.origin
