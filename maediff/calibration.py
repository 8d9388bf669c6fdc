"""A threshold from healthy scans. Clinics can have one, since it needs no labelled lesion."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from maediff.errors import ConfigError, InputError, ModelError
from maediff.typing import BoolArray, FloatArray, FloatMap

RATES = (1e-1, 1e-2, 1e-3, 1e-4)
"""False-positive rates whose thresholds are always recorded."""

HEALTHY_ORIGIN = "healthy calibration scans"
Part = TypeVar("Part")
MIN_OF_A_CONTRAST = 4
"""Least number of healthy scans of a contrast, or of a form, for it to have its own threshold."""
Form = Literal["stack", "volume", ""]
"""How a model with several orientations scores a scan: a stack in its first orientation alone, a volume in all."""
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Calibration:
    """Threshold and statistics of a model's maps on healthy scans.

    Attributes:
        threshold: Voxels strictly above it are called anomalous; in the units of the map.
        false_positive_rate: Share of healthy brain voxels allowed above the threshold, with equal weight for each scan.
        n_scans: Healthy scans used.
        n_voxels: Total number of their brain voxels.
        quantiles: Thresholds at this rate and at those of ``RATES``, keyed by the rate as text, such as ``"0.001"``.
        case_scores: Scan-level scores of those scans, for comparison with a new scan's.
        origin: Where the threshold came from, in words.
        healthy: Measurements of each healthy scan by the input check; empty in calibrations of earlier versions.
        contrasts: Calibrations from the scans of one contrast, keyed by the kind read from the scans; for models with
            `score.sign` auto, which handle several contrasts.
        forms: Calibrations from the scans of one form, each with its own `contrasts`, keyed by :data:`Form`; for models
            with several orientations. Empty if all scans have one form, and in calibrations of earlier versions.
    """

    threshold: float
    false_positive_rate: float
    n_scans: int
    n_voxels: int
    quantiles: dict[str, float]
    case_scores: tuple[float, ...]
    origin: str = HEALTHY_ORIGIN
    healthy: tuple[Mapping[str, Any], ...] = ()
    contrasts: Mapping[str, Calibration] = field(default_factory=dict)
    forms: Mapping[str, Calibration] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        lists = {"case_scores": list(self.case_scores), "healthy": [dict(scan) for scan in self.healthy]}
        parts = {
            name: {key: part.to_dict() for key, part in getattr(self, name).items()} for name in ("contrasts", "forms")
        }
        return asdict(replace(self, healthy=(), contrasts={}, forms={})) | lists | parts

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Build a calibration from the values of :meth:`to_dict`.

        Raises:
            ModelError: A field is missing or of the wrong type.
        """
        try:
            return cls(
                threshold=float(values["threshold"]),
                false_positive_rate=math.nan if (at := values["false_positive_rate"]) is None else float(at),
                n_scans=int(values["n_scans"]),
                n_voxels=int(values["n_voxels"]),
                quantiles={str(rate): float(value) for rate, value in values["quantiles"].items()},
                case_scores=tuple(float(score) for score in values["case_scores"]),
                origin=str(values["origin"]),
                healthy=tuple(dict(scan) for scan in values.get("healthy", ())),
                contrasts={str(kind): cls.from_dict(part) for kind, part in values.get("contrasts", {}).items()},
                forms={str(form): cls.from_dict(part) for form, part in values.get("forms", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"calibration is damaged ({type(error).__name__}: {error}); run `maediff calibrate` again"
            ) from None

    def of_contrast(self, kind: str, form: Form = "") -> Calibration:
        """Return the calibration of a contrast among scans of a form; what has none of its own gets a wider one.

        That is the calibration of the contrast in any form, then that of the form in any contrast, then that of all
        scans: residuals differ more between contrasts than between forms.
        """
        return alike(self, getattr, kind, form)

    def percentile_of(self, score: float) -> float:
        """Return the share of healthy calibration scans that scored lower than ``score``."""
        return float(np.mean(np.asarray(self.case_scores) < score)) if self.case_scores else float("nan")

    def promises(self) -> list[str]:
        """Describe what each recorded threshold allows on healthy scans, one line per false-positive rate and contrast.

        Example:
            >>> Calibration(0.2, 0.01, 5, 1000, {"0.01": 0.2}, ()).promises()
            ['threshold 0.2: 10,000 voxels per million, 10 ml per litre of healthy brain (in force)']
        """
        lines = []
        for rate, threshold in sorted(self.quantiles.items(), key=lambda item: -float(item[0])):
            share = float(rate)
            force = " (in force)" if share == self.false_positive_rate else ""
            allowed = f"{1e6 * share:,.0f} voxels per million, {1e3 * share:g} ml per litre of healthy brain"
            lines.append(f"threshold {threshold:.4g}: {allowed}{force}")
        lines += [f"{kind.upper()} {line}" for kind, part in self.contrasts.items() for line in part.promises()]
        return lines + [f"{form}s: {line}" for form, part in self.forms.items() for line in part.promises()]


def alike(whole: Part, parts: Callable[[Part, str], Mapping[str, Part]], contrast: str, form: str) -> Part:
    """Choose the part of a calibration that applies to a scan, see :meth:`Calibration.of_contrast`.

    Args:
        whole: The calibration, or a record of one.
        parts: Return its parts of a name: ``forms`` or ``contrasts``.
        contrast: Contrast of the scan.
        form: Its form.
    """
    same_form = parts(whole, "forms").get(form, whole)
    return parts(same_form, "contrasts").get(contrast) or parts(whole, "contrasts").get(contrast) or same_form


def among_healthy(percentile: float | None, scans: int | None, suspended: str | None = None) -> str:
    """Describe how a score compares with those of the healthy calibration scans; empty if there are none.

    Args:
        percentile: Share of healthy scans that scored lower, 0 to 1.
        scans: Number of healthy scans; None if it is not known.
        suspended: Why the calibration does not apply; None if it does.

    Example:
        >>> among_healthy(0.95, 20), among_healthy(0.6, None), among_healthy(None, None)
        ('above 19 of 20 healthy scans', 'above 60 % of the healthy scans', '')
        >>> among_healthy(None, None, "the overrides change the maps")
        'calibration suspended'
    """
    if suspended:
        return "calibration suspended"
    if percentile is None or math.isnan(percentile):
        return ""
    if not scans:
        return f"above {100 * percentile:.0f} % of the healthy scans"
    return f"above {round(scans * percentile)} of {count_scans(scans, 'healthy')}"


def with_threshold(
    calibration: Calibration | None, threshold: float | None = None, rate: float | None = None
) -> Calibration:
    """Replace the threshold, given as a value or as the share of healthy brain voxels that it allows.

    Args:
        calibration: The model's calibration; None before calibration.
        threshold: Threshold of the map, in its units.
        rate: False-positive rate, one of those that `calibration` records a threshold for.

    Raises:
        ConfigError: Both or neither are given, the threshold is not a finite number of at least 0, or no threshold is
            recorded for the rate.

    Example:
        >>> with_threshold(None, 0.5).threshold
        0.5
    """
    if (threshold is None) == (rate is None):
        raise ConfigError("give either a threshold or a rate, not both")
    if threshold is not None:
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ConfigError(f"threshold {threshold} is not a finite number of at least 0, the units of the map")
        origin = f"given as {threshold:g} for this run"
        if calibration is None:
            return Calibration(float(threshold), math.nan, 0, 0, {}, (), origin)
        given = replace(calibration, threshold=float(threshold), false_positive_rate=math.nan, origin=origin)
        return _with_parts(given, lambda part: with_threshold(part, threshold))
    known = {} if calibration is None else {float(at): value for at, value in calibration.quantiles.items()}
    if calibration is None or rate not in known:
        stored = ", ".join(f"{at:g}" for at in sorted(known, reverse=True)) or "none"
        raise ConfigError(
            f"the model has no threshold for rate {rate}; recorded: {stored}; choose one of them, or run `maediff "
            "calibrate --rate` with healthy scans"
        )
    origin = f"{calibration.origin}, rate {rate:g} given for this run"
    chosen = replace(calibration, threshold=known[rate], false_positive_rate=float(rate), origin=origin)
    return _with_parts(chosen, lambda part: with_threshold(part, rate=rate))


def _with_parts(calibration: Calibration, change: Callable[[Calibration], Calibration]) -> Calibration:
    """Change the calibrations of contrasts and forms."""
    contrasts = {kind: change(part) for kind, part in calibration.contrasts.items()}
    forms = {form: change(part) for form, part in calibration.forms.items()}
    return replace(calibration, contrasts=contrasts, forms=forms)


def count_scans(count: int, kind: str) -> str:
    """Return the number of scans of a kind in words.

    Example:
        >>> count_scans(1, "healthy"), count_scans(5, "held-out healthy")
        ('1 healthy scan', '5 held-out healthy scans')
    """
    return f"{count} {kind} scan{'' if count == 1 else 's'}"


def calibrate(
    maps: Iterable[tuple[FloatArray, BoolArray, float]],
    rate: float,
    *,
    origin: str = HEALTHY_ORIGIN,
    contrasts: Sequence[str] = (),
    forms: Sequence[str] = (),
) -> Calibration:
    """Compute the threshold for a false-positive rate on healthy scans.

    The threshold is the smallest observed map value t for which the mean over scans of the share of brain voxels
    strictly above t is at most ``rate``. Every scan has the same weight, whatever the size of its brain or voxels.
    Values are held as float32, 4 bytes per brain voxel.

    Args:
        maps: Anomaly map, brain mask (same shape) and scan-level score of each healthy scan.
        rate: Allowed share of healthy brain voxels above the threshold, in (0, 1).
        origin: Where the scans came from, recorded in the model folder.
        contrasts: Kind of contrast of each scan, read after all maps; kinds with at least :data:`MIN_OF_A_CONTRAST`
            scans also get their own calibration. Empty: none does.
        forms: Form of each scan, read after all maps. If there are several, those with at least as many scans also get
            their own calibration, with its own contrasts. Empty: none does.

    Raises:
        ConfigError: ``rate`` is outside (0, 1).
        InputError: No scan, an empty mask, or a map that is not finite.

    Example:
        >>> values = np.arange(100, dtype=np.float32)
        >>> calibrate([(values, values >= 0, 99.0)], 0.05).threshold  # 95 to 99 lie above: five of a hundred
        94.0
    """
    if not 0 < rate < 1:
        raise ConfigError(f"false-positive rate {rate} is outside (0, 1); 0.01 is usual (score.false_positive_rate)")
    found = [(_sample(values, mask, number), score) for number, (values, mask, score) in enumerate(maps, 1)]
    if not found:
        raise InputError("no healthy scan to calibrate on; give at least one scan known to be healthy")
    kinds, shapes = (names or [""] * len(found) for names in (contrasts, forms))
    scans = [_Scan(*one, kind, form) for one, kind, form in zip(found, kinds, shapes, strict=True)]
    groups = _groups(scans, "form") if len(set(shapes)) > 1 else {}
    parts = {
        form: _by_contrast(own, rate, f"{origin}, of which the {len(own)} scored as {form}s", " and of these the")
        for form, own in groups.items()
    }
    return replace(_by_contrast(scans, rate, origin), forms=parts)


class _Scan(NamedTuple):
    """A healthy scan: its sorted brain voxels, scan-level score, contrast and form."""

    sample: FloatMap
    score: float
    contrast: str
    form: str


def _groups(scans: Sequence[_Scan], name: Literal["contrast", "form"]) -> dict[str, list[_Scan]]:
    """Group scans; groups with too few scans, and scans without a name, are left out."""
    groups: dict[str, list[_Scan]] = defaultdict(list)
    for scan in scans:
        groups[getattr(scan, name)].append(scan)
    return {key: own for key, own in sorted(groups.items()) if key and len(own) >= MIN_OF_A_CONTRAST}


def _by_contrast(scans: Sequence[_Scan], rate: float, origin: str, link: str = ", of which the") -> Calibration:
    """Compute the calibration of scans, and of each contrast among them."""
    parts = {
        kind: _calibrated(own, rate, f"{origin}{link} {len(own)} that read as {kind}")
        for kind, own in _groups(scans, "contrast").items()
    }
    return replace(_calibrated(scans, rate, origin), contrasts=parts)


def _calibrated(scans: Sequence[_Scan], rate: float, origin: str) -> Calibration:
    """Compute one calibration."""
    samples = [scan.sample for scan in scans]
    candidates = np.sort(np.concatenate(samples))
    return Calibration(
        threshold=_threshold(samples, candidates, rate),
        false_positive_rate=float(rate),
        n_scans=len(samples),
        n_voxels=int(candidates.size),
        quantiles={repr(at): _threshold(samples, candidates, at) for at in sorted({*RATES, float(rate)}, reverse=True)},
        case_scores=tuple(float(scan.score) for scan in scans),
        origin=origin,
    )


def false_positive_share(samples: Sequence[FloatArray], threshold: float) -> float:
    """Average over scans the share of values strictly above a threshold.

    Args:
        samples: Brain-voxel values of each scan in ascending order.
        threshold: Any value.
    """
    above = [1.0 - np.searchsorted(s, np.asarray(threshold, dtype=s.dtype), side="right") / s.size for s in samples]
    return float(np.mean(above))


def _sample(values: FloatArray, mask: BoolArray, number: int) -> FloatMap:
    if values.shape != mask.shape:
        raise InputError(f"calibration scan {number}: map {values.shape} and brain mask {mask.shape} differ in shape")
    inside = values[mask].astype(np.float32)
    if inside.size == 0:
        raise InputError(f"calibration scan {number} has an empty brain mask; check the mask or leave the scan out")
    if not np.isfinite(inside).all():
        raise InputError(f"calibration scan {number} has voxels that are not finite in its map; leave the scan out")
    inside.sort()
    return inside


def _threshold(samples: Sequence[FloatMap], candidates: FloatMap, rate: float) -> float:
    """Bisect the sorted observed values for the smallest that keeps the false-positive share within the rate."""
    low, high = 0, candidates.size - 1  # the largest value has nothing above it, so it always qualifies
    while low < high:
        middle = (low + high) // 2
        if false_positive_share(samples, float(candidates[middle])) <= rate + _TOLERANCE:
            high = middle
        else:
            low = middle + 1
    return float(candidates[low])
