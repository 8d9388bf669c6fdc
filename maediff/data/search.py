"""Find the NIfTI files of a folder that are scans, by voxels and names; files left out come with a reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from maediff.data.walk import LeftOut
from maediff.errors import MAEDiffError
from maediff.files import read_json
from maediff.typing import Array
from maediff.volume import SUFFIXES, read_voxels, stem_of

Content = Literal["labels", "shares", "scan", "unknown"]

_RESULT = re.compile(
    r"_(anomaly|anomaly-mask)$|_desc-[a-z0-9]*(anomaly|reconstruction|uncertainty)_|_label-anomaly(_|$)", re.IGNORECASE
)
_RESULT_BESIDE_A_MAP = re.compile(r"_(reconstruction|uncertainty)$", re.IGNORECASE)
_LABEL = (
    r"(brain|b)?_?(mask|msk)s?|masks?|(d|f|pve|manual)?_?seg(mentation)?s?|aseg|wmparc|ribbon|parc(ellation)?|"
    r"aparc([.+]a\d+s)?([.+]aseg)?|labels?|label_?maps?|lesions?|lesion_?mask|tumou?rs?|rois?|gt|truth|ground_?truth|"
    r"consensus(_?gt)?|wmh|contours?|annotations?|delineations?|pve|prob(seg|abilit(y|ies))?|mixeltype|atlas"
)
_NAMED_LABEL = re.compile(rf"(^|[_.+ -])({_LABEL})([_-]?\d{{1,2}})?$", re.IGNORECASE)
_LABEL_FOLDER = re.compile(
    r"(labels?|masks?|segs?|segmentations?|ground_?truth|gt|lesions?|rois?)(tr|ts|va?l?|_?train|_?test)?", re.IGNORECASE
)
_CONSTANT = 0.6
"""Share of neighbouring foreground voxels that are equal from which on an image holds labels. In 6 label maps of heads
(two sources) it was 0.75 or more, in 11 real scans (three sources) 0.31 or less. [ours]"""
_SATURATED = 0.2
"""Share of foreground voxels at the top of an image (1, 100 percent or 255) from which on it holds shares: they are
wholly one tissue. [ours]"""
_SAMPLE = 50_000  # voxels, enough to find the background
_OTHER_FORMATS = (".mgz", ".mgh", ".img", ".hdr", ".nrrd", ".mha", ".mhd", ".mnc", ".nii.bz2", ".nii.xz", ".nii.zst")


@dataclass(frozen=True)
class Judged:
    """Scans of a folder, those among them whose names say otherwise, and what is left out."""

    scans: tuple[Path, ...]
    despite_name: tuple[Path, ...]
    left_out: tuple[LeftOut, ...]


def is_nifti(path: Path) -> bool:
    """Check whether a file is NIfTI by its name, and not hidden."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def is_result(path: Path, files: Collection[Path] = ()) -> bool:
    """Check whether a name is that of a map that MAEDiff writes.

    Args:
        path: The file.
        files: Other files of the folder: a reconstruction counts as ours only beside its anomaly map.
    """
    stem = stem_of(path)
    if _RESULT.search(stem):
        return True
    beside = _RESULT_BESIDE_A_MAP.sub("_anomaly", stem)
    return beside != stem and any(path.with_name(f"{beside}{ending}") in files for ending in (*SUFFIXES, ".json"))


def wrote_brain(sidecar: Path, mask: Path) -> bool:
    """Check whether a brain mask is one that inference found, by the sidecar of its scan."""
    outputs = read_json(sidecar).get("outputs")
    return isinstance(outputs, dict) and outputs.get("brain") == mask.name


def named_label(path: Path) -> bool:
    """Check whether a file is named like a mask or a label map, or lies in a folder of such.

    Example:
        >>> names = ("a_t1.nii", "a_seg.nii", "labelsTr/a.nii", "T1_brain_pve_0.nii", "lesion-study_t1.nii", "aseg.nii")
        >>> [named_label(Path(name)) for name in names]
        [False, True, True, True, False, True]
    """
    return bool(_NAMED_LABEL.search(stem_of(path)) or _LABEL_FOLDER.fullmatch(path.parent.name))


def judge(files: Sequence[Path]) -> Judged:
    """Separate the scans of a folder from label maps and results.

    A label map by its voxels is never a scan, whatever its name is; a scan by its voxels is one, even if it is named
    like a label map; the name decides only if the voxels do not. Whether a scan can be used is not checked.

    Args:
        files: All files of the folder.
    """
    scans, despite, left_out = [], [], []
    known = frozenset(files)
    for path in filter(is_nifti, files):
        if is_result(path, known):
            left_out.append(LeftOut(path, "a result of MAEDiff by its name"))
            continue
        content, named = content_of(path), named_label(path)
        if content == "labels":
            left_out.append(LeftOut(path, "a mask or label map by its voxels: few values in constant regions"))
        elif content == "shares" and (named or _saturated(path)):
            left_out.append(LeftOut(path, "a mask or probability map: its voxels are shares"))
        elif named and content == "unknown":
            left_out.append(LeftOut(path, "a mask or label map by its name"))
        else:
            scans.append(path)
            despite += [path] if named else []
    return Judged(tuple(scans), tuple(despite), tuple(left_out))


def describe_left_out(left_out: Sequence[LeftOut], folder: Path) -> str:
    """Count what was left out by reason, in a sentence, with a few names of each."""
    by_reason: dict[str, list[str]] = {}
    for item in left_out:
        name = item.path.relative_to(folder) if item.path.is_relative_to(folder) else item.path
        by_reason.setdefault(item.reason, []).append(str(name))
    parts = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(f"{', '.join(names[:3])}{more} ({reason})")
    return "; ".join(parts)


def other_formats(files: Sequence[Path]) -> str:
    """Count images of other formats, for a message; empty if there are none."""
    endings = (next((e for e in _OTHER_FORMATS if path.name.lower().endswith(e)), None) for path in files)
    counts = Counter(ending for ending in endings if ending)
    return ", ".join(f"{count} {ending}" for ending, count in counts.items())


def content_of(path: Path) -> Content:
    """Classify a NIfTI file by its voxels.

    Returns:
        ``labels`` for few values in constant regions, ``shares`` for values from 0 to 1, ``scan`` for others, and
        ``unknown`` for a constant image and for what cannot be read.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return "unknown"
    return _content(path, status.st_mtime_ns, status.st_size)[0]


def _saturated(path: Path) -> bool:
    status = path.stat()
    return _content(path, status.st_mtime_ns, status.st_size)[1]


@lru_cache(maxsize=4096)
def _content(path: Path, _mtime_ns: int, _size: int) -> tuple[Content, bool]:
    """Judge the voxels of a file, which the time and size tell from an earlier one of its name."""
    try:
        data = np.nan_to_num(read_voxels(path), posinf=0, neginf=0)
    except MAEDiffError:
        return "unknown", False
    low, high = float(data.min()), float(data.max())
    if low == high:
        return "unknown", False
    if _are_labels(data, low, high):
        return "labels", False
    saturated = low >= 0 and float((data >= 0.999 * high)[data > 0].mean()) > _SATURATED
    return "shares" if saturated or (low >= 0 and high <= 1.001) else "scan", saturated


def _are_labels(data: Array, low: float, high: float) -> bool:
    """Check for constant regions; labels that were resampled linearly have them, too, but for their borders."""
    if ((data == low) | (data == high)).all():
        return True
    values, counts = np.unique(data.ravel()[:: max(1, data.size // _SAMPLE)], return_counts=True)
    foreground = data != values[counts.argmax()]
    return float(np.median([_equal_share(data, foreground, axis) for axis in range(3)])) >= _CONSTANT


def _equal_share(values: Array, foreground: Array, axis: int) -> float:
    """Measure the share of neighbouring foreground voxels along an axis that are equal; 1 if there are none."""
    first, second = (np.s_[:-1], np.s_[1:])
    before, after = ((np.s_[:],) * axis + (part,) for part in (first, second))
    both = foreground[before] & foreground[after]
    return float((values[before] == values[after])[both].mean()) if both.any() else 1.0
