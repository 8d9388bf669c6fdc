"""Find the masks and labels of a scan by the entities of BIDS names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from maediff.volume import stem_of

GRID = ("space", "cohort", "res", "den")
"""Entities that say on which voxel grid an image lies: a mask of another grid is of another image."""
_NATIVE = frozenset({"orig", "native", "individual"})
_OWN_MEANING = frozenset({"desc", "label", "atlas", "seg", "mod", *GRID})  # not of the scan that it was made from
_NUMBERS = frozenset({"run", "echo", "flip", "inv", "split"})
_CONTRASTS = frozenset({"T1w", "T2w", "FLAIR", "T2star", "PDw", "T1map", "T2map", "UNIT1", "inplaneT1", "inplaneT2"})
_LESION = re.compile(r"lesion|tumou?r|wmh|infarct|stroke", re.IGNORECASE)
_MASK_SUFFIXES = frozenset({"mask", "roi", "dseg"})


def entities(stem: str) -> dict[str, str]:
    """Read the entities of a BIDS name; numbers have no leading zeros.

    Example:
        >>> entities("sub-01_run-02_space-MNI152_desc-brain_mask")
        {'sub': '01', 'run': '2', 'space': 'MNI152', 'desc': 'brain'}
    """
    found = dict(part.split("-", 1) for part in stem.split("_") if "-" in part)
    return found | {name: str(int(found[name])) for name in _NUMBERS & set(found) if found[name].isdecimal()}


def fits(scan: str, other: str) -> bool:
    """Check whether a mask or label may be that of a scan, by BIDS names.

    Subject, session and grid must be the same, and so must the contrast, if the mask's name says one, as in
    ``sub-1_T1w_desc-brain_mask``; any other entity that the mask's name has, the scan's must have, too.

    Args:
        scan: Stem of the scan, such as ``sub-1_acq-3d_T1w``.
        other: Stem of the mask, such as ``sub-1_desc-brain_mask``.

    Example:
        >>> fits("sub-1_acq-3d_T1w", "sub-1_desc-brain_mask"), fits("sub-1_space-X_T1w", "sub-1_desc-brain_mask")
        (True, False)
    """
    own, its = entities(scan), entities(other)
    suffix = scan.rpartition("_")[2]
    spaces = {None, *_NATIVE, suffix}
    same_space = own.get("space") == its.get("space") or {own.get("space"), its.get("space")} <= spaces
    same_grid = same_space and all(own.get(name) == its.get(name) for name in GRID[1:])
    contrasts = _CONTRASTS & {*other.split("_")[:-1], its.get("mod", "")}
    same_kind = _same_person(scan, other) and contrasts <= {suffix}
    return same_kind and same_grid and all(own.get(n) == v for n, v in its.items() if n not in _OWN_MEANING)


def dropped(scan: str, other: str) -> frozenset[str]:
    """List the entities of a scan that the name of its mask leaves open."""
    return frozenset(entities(scan)) - frozenset(entities(other)) - _OWN_MEANING


def is_brain_mask(stem: str) -> bool:
    """Check whether a BIDS name is that of a brain mask."""
    found = entities(stem)
    suffix = stem.rpartition("_")[2]
    return suffix == "brainmask" or (suffix == "mask" and "brain" in (found.get("desc"), found.get("label")))


def is_lesion_label(stem: str) -> bool:
    """Check whether a BIDS name is that of a lesion mask; the anomaly masks of MAEDiff do not count.

    Example:
        >>> names = ("sub-1_label-lesion_mask", "sub-1_label-L_desc-T1lesion_mask", "sub-1_T1w_label-lesion_roi")
        >>> [is_lesion_label(name) for name in (*names, "sub-1_label-anomaly_mask", "sub-1_FLAIR_roi")]
        [True, True, True, False, True]
    """
    found = entities(stem)
    suffix = stem.rpartition("_")[2]
    if suffix == "roi" and not {"desc", "label"} & set(found):
        return True
    return suffix in _MASK_SUFFIXES and any(_LESION.search(found.get(name, "")) for name in ("label", "desc"))


def best_fit(scan: str, candidates: Iterable[Path], scans: Sequence[str]) -> tuple[Path | None, str]:
    """Choose the file that belongs to a scan: with the most entities in common, the first of equals.

    Args:
        scan: Stem of the scan.
        candidates: Masks or labels, in order of preference.
        scans: Stems of all scans beside which they may lie.

    Returns:
        The file, or None; and what a person should know: that a file was not taken, because its name leaves open to
        which of several scans it belongs, or because none is of the scan's grid.
    """
    there = list(candidates)
    fitting = [path for path in there if fits(scan, stem_of(path))]
    fitting.sort(key=lambda path: len(dropped(scan, stem_of(path))))  # stable: equals keep their order
    if not fitting:
        names = [path.name for path in there if _same_person(scan, stem_of(path))]
        return None, f"{', '.join(names[:3])} is of another space, resolution or acquisition" if names else ""
    best = stem_of(fitting[0])
    suffix = scan.rpartition("_")[2]
    rivals = [other for other in scans if other != scan and other.endswith(f"_{suffix}") and fits(other, best)]
    if dropped(scan, best) and any(dropped(other, best) for other in rivals):
        return None, f"{fitting[0].name} may belong to {scan} or to {rivals[0]}; a table with a mask column tells"
    return fitting[0], ""


def _same_person(scan: str, other: str) -> bool:
    own, its = entities(scan), entities(other)
    return all(own.get(name) == its.get(name) for name in ("sub", "ses"))
