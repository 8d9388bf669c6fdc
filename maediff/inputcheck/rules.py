"""Rules on the measures of a scan: notes with a stable code, and inputs that are refused unless accepted.

Absolute rules hold for any contrast and any model. Comparisons need what calibration stored of healthy scans; they look
for the nearest of these, not for an average one, since a model may know several contrasts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from maediff.errors import InputError
from maediff.inputcheck.measures import UPRIGHT, HealthyScan, MapMeasures, ScanMeasures
from maediff.typing import Array, BoolArray
from maediff.volume import Volume
from maediff.working.brainmask import WHOLE_HEAD
from maediff.working.foreground import MAX_BRAIN_ML

CT, EMPTY = "ct", "empty"
ACCEPTABLE = (WHOLE_HEAD, CT, EMPTY)
"""Codes of inputs that are refused unless a caller accepts them."""

MIN_HEALTHY = 5
"""Least number of healthy scans for comparisons."""

_MAX_ML = 3000.0  # a mask beyond this holds a head
_AIR_HU, _SOFT_HU, _TISSUE_HU, _SPREAD_HU = -500.0, 200.0, (-20.0, 80.0), 60.0
_MIN_TISSUE = 0.4
_MAX_FLAT = 0.5
_MIN_COHERENCE, _MIN_STRUCTURE, _MIN_SHAPE = 0.15, 0.02, 0.75
_MIN_SYMMETRY, _BROAD, _LOW = 0.85, (0.6, 1.05), 0.5
_MAX_DARK, _MAX_SIDE_GAP = 0.3, 0.6
_EQUAL = 0.1  # working units: tissues closer than this have one intensity


class Note(NamedTuple):
    """A note of the input check: a stable code, and a sentence for people."""

    code: str
    text: str


def refuse(volume: Volume, brain: BoolArray, accept: Collection[str] = ()) -> None:
    """Refuse inputs that must be a mistake.

    Args:
        volume: The scan.
        brain: Its brain (X, Y, Z), not empty.
        accept: Codes of :data:`ACCEPTABLE` that are not refused.

    Raises:
        InputError: Its brain has next to no signal, or its mask holds a whole head.
    """
    inside = volume.data[brain]
    volume_ml = inside.size * volume.voxel_mm3 / 1000
    problems = {
        EMPTY: (
            _flat_share(inside) > _MAX_FLAT,
            "more than half of its brain has one and the same intensity: no signal",
        ),
        WHOLE_HEAD: (
            volume_ml > _MAX_ML,
            f"its brain mask holds {volume_ml:,.0f} ml, more than any brain: a whole head",
        ),
    }
    for code, (found, why) in problems.items():
        if found and code not in accept:
            raise InputError(
                f"{volume.name} is not what the model can judge: {why}; give a skull-stripped MR scan or a mask of its "
                f"brain (--accept {code} goes on all the same)"
            )


def refuse_ct(volume: Volume, accept: Collection[str] = ()) -> None:
    """Refuse a scan whose intensities are Hounsfield units; arguments and errors are those of :func:`refuse`."""
    if CT not in accept and is_ct(volume.data):
        raise InputError(
            f"{volume.name} is not what the model can judge: its intensities are those of a CT (air near -1000, tissue "
            f"near 40), not of MR; give an MR scan (--accept {CT} goes on all the same)"
        )


def is_ct(data: Array) -> bool:
    """Check whether intensities are Hounsfield units: air, and most of the rest near water, in a narrow range.

    Args:
        data: Intensities of the whole scan (X, Y, Z).
    """
    if data.min() > _AIR_HU:
        return False
    tissue = data[np.abs(data) <= _SOFT_HU]
    if tissue.size < _MIN_TISSUE * np.count_nonzero(data > _AIR_HU):
        return False
    first, middle, third = (float(q) for q in np.percentile(tissue, [25, 50, 75]))
    return _TISSUE_HU[0] <= middle <= _TISSUE_HU[1] and third - first <= _SPREAD_HU


def check_scan(scan: ScanMeasures) -> list[Note]:
    """Judge a scan by rules that hold for any contrast."""
    notes = []
    if scan.coherence < _MIN_COHERENCE:
        notes.append(Note("noise", "the scan looks like noise: voxels a few mm apart have nothing in common"))
    elif scan.structure < _MIN_STRUCTURE and scan.sides_mm[2] >= _LOW * scan.sides_mm[1]:
        notes.append(Note("no-anatomy", "no tissue of a brain is where it should be: is this a brain, and upright?"))
    if scan.placement != UPRIGHT:
        notes.append(
            Note("orientation", f"the brain looks {scan.placement}: check the orientation in the header of the scan")
        )
    notes += _check_extent(scan)
    if scan.dark_share > _MAX_DARK:
        notes.append(Note("no-signal", f"{scan.dark_share:.0%} of the brain mask have no signal: is the mask right?"))
    elif abs(scan.side_gap) > _MAX_SIDE_GAP:
        darker = "left" if scan.side_gap > 0 else "right"
        notes.append(Note("one-sided", f"the {darker} half of the brain is much darker than the other"))
    return notes


def _check_extent(scan: ScanMeasures) -> list[Note]:
    """Judge size and form of the brain mask."""
    notes = []
    right, front, up = scan.sides_mm
    if scan.brain_ml > MAX_BRAIN_ML:
        notes.append(Note(WHOLE_HEAD, f"the brain mask holds {scan.brain_ml:,.0f} ml: skull or neck are in it"))
    if not _BROAD[0] <= right / front <= _BROAD[1] or scan.symmetry < _MIN_SYMMETRY:
        form = f"{right:.0f} mm from left to right and {front:.0f} mm from front to back"
        notes.append(Note("half-brain", f"the brain measures {form}: a part of it is missing, or its mask is wrong"))
    elif up / front < _LOW:
        notes.append(
            Note(
                "slab", f"the brain is {up:.0f} mm high and {front:.0f} mm long: a slab, or the slice spacing is wrong"
            )
        )
    elif scan.shape < _MIN_SHAPE and scan.placement == UPRIGHT:
        notes.append(Note("shape", "the brain has an unusual shape: is it whole, upright and well masked?"))
    return notes


def compare(scan: ScanMeasures, found: MapMeasures | None, healthy: Sequence[HealthyScan]) -> list[Note]:
    """Compare a scan and its map with the healthy scans of the calibration.

    Args:
        scan: The scan.
        found: Its map, or None before there is one.
        healthy: What calibration stored; nothing is said of fewer than :data:`MIN_HEALTHY`.
    """
    if len(healthy) < MIN_HEALTHY:
        return []
    known = [item.scan for item in healthy]
    notes = [*_compare_volume(scan, known), *_compare_intensities(scan, known), *_compare_noise(scan, known)]
    medians = [item.map.median for item in healthy]
    if found is not None and found.median > 1.5 * max(medians):
        flagged = (
            "" if found.flagged_share is None else f" ({found.flagged_share:.0%} of the brain above the threshold)"
        )
        notes.append(
            Note(
                "map-high",
                f"the map is high in the whole brain{flagged}: its median is {found.median:.3g}, and at most "
                f"{max(medians):.3g} in {len(healthy)} healthy scans; the model does not know this kind of scan, and "
                "single findings mean little",
            )
        )
    return notes


def _compare_volume(scan: ScanMeasures, known: Sequence[ScanMeasures]) -> list[Note]:
    low, high = min(item.brain_ml for item in known), max(item.brain_ml for item in known)
    if 0.7 * low <= scan.brain_ml <= 1.3 * high:
        return []
    text = f"the brain holds {scan.brain_ml:,.0f} ml, those of the healthy scans {low:,.0f} to {high:,.0f} ml"
    return [Note("brain-volume", text)]


def _compare_intensities(scan: ScanMeasures, known: Sequence[ScanMeasures]) -> list[Note]:
    """Look for the healthy scan that is most alike, by the order of tissues and by the histogram."""
    orders = {tissue_order(item.tissues) for item in known}
    own = tissue_order(scan.tissues)
    if own not in orders:
        text = (
            f"tissues have another order of brightness ({own}) than in the healthy scans ({'; '.join(sorted(orders))})"
        )
        return [Note("contrast", f"{text}: another contrast or modality than the model was calibrated on")]
    among = [min(_apart(a, b) for k, b in enumerate(known) if k != i) for i, a in enumerate(known)]
    nearest = min(_apart(scan, item) for item in known)
    if nearest > max(0.2, 1.5 * max(among)):
        text = f"its intensities are distributed unlike those of any healthy scan (they differ by {nearest:.0%}, "
        return [Note("intensities", text + f"healthy scans from the one most alike by at most {max(among):.0%})")]
    return []


def _compare_noise(scan: ScanMeasures, known: Sequence[ScanMeasures]) -> list[Note]:
    low, high = min(item.noise for item in known), max(item.noise for item in known)
    if scan.noise > max(0.04, 2 * high):
        return [
            Note("noisy", f"the scan is noisier than any healthy scan ({scan.noise:.2g}, these at most {high:.2g})")
        ]
    if scan.noise < 0.3 * low:
        return [
            Note("smooth", f"the scan is smoother than any healthy scan ({scan.noise:.2g}, these at least {low:.2g})")
        ]
    return []


def tissue_order(tissues: tuple[float, float, float]) -> str:
    """Order fluid, grey and white matter by brightness, the darkest first; those that are alike by name.

    Example:
        >>> tissue_order((-0.8, 0.1, 0.6)), tissue_order((0.9, 0.1, 0.05))
        ('fluid < grey < white', 'grey = white < fluid')
    """
    groups: list[list[str]] = []
    before = -np.inf
    for value, name in sorted(zip(tissues, ("fluid", "grey", "white"), strict=True)):
        if value - before < _EQUAL:
            groups[-1].append(name)
        else:
            groups.append([name])
        before = value
    return " < ".join(" = ".join(sorted(group)) for group in groups)


def _flat_share(values: Array) -> float:
    """Return the share of the most common value."""
    _, counts = np.unique(values, return_counts=True)
    return float(counts.max() / values.size)


def _apart(one: ScanMeasures, other: ScanMeasures) -> float:
    """Return the share of two histograms that does not overlap."""
    return 0.5 * float(np.abs(np.array(one.histogram) - np.array(other.histogram)).sum())


def as_dict(notes: Sequence[Note]) -> list[dict[str, Any]]:
    """Return notes as plain values for JSON."""
    return [note._asdict() for note in notes]
