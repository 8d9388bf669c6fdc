"""Healthy slices of many scans, in memory, with a copy on disk so that a resumed run starts at once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maediff._version import __version__
from maediff.config import DataConfig
from maediff.data.cases import Case
from maediff.errors import InputError, one_line
from maediff.files import atomic_path
from maediff.typing import Array, BoolArray
from maediff.volume import read_channel, read_mask, read_nifti
from maediff.working import lesion_slices, prepare

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SliceSet:
    """Working slices of several scans.

    Attributes:
        images: (N, H, W) float16, scaled to [-1, clip]; (N, C, H, W) of several channels.
        masks: (N, H, W) bool, the brain.
        subjects: Subject of each slice to train on.
        left_out: Slices left out because a label marks them or one of their neighbours.
        failed: Scans that could not be read, with the reason.
        places: (M, 1 + neighbours) where in `images` a slice to train on and its neighbours are, in the order of
            `DataConfig.offsets`; -1 beyond the ends of the scan. None if every image is one to train on, alone.
    """

    images: npt.NDArray[np.float16]
    masks: BoolArray
    subjects: tuple[str, ...]
    left_out: int
    failed: tuple[tuple[str, str], ...]
    places: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images if self.places is None else self.places)


def healthy_slices(
    cases: Sequence[Case], config: DataConfig, cache: Path | None = None, on_case: Callable[[str], None] | None = None
) -> SliceSet:
    """Read the slices to train on: those with brain, less those that hold any of a lesion label.

    With `data.neighbours`, slices are left out too if a neighbour holds any; neighbours may be without brain.

    Args:
        cases: Scans; one that cannot be read is recorded in `failed` and skipped.
        config: Working grid and intensities.
        cache: Folder for a copy; reused while scans (path, size, time), `config` and the version stay the same.
        on_case: Called with the name of each scan as it is read.

    Raises:
        InputError: No slice is left.
    """
    stored = None if cache is None else cache / f"slices-{_key(cases, config)}.npz"
    if stored is not None and (kept := _load(stored)) is not None:
        for name, reason in kept.failed:
            log.warning("left out %s: %s (when it was read first; remove %s to read it again)", name, reason, stored)
        return kept
    parts: list[tuple[Case, Slices]] = []
    failed = []
    for case in cases:
        if on_case:
            on_case(case.id)
        try:
            parts.append((case, _read(case, config)))
        except Exception as error:  # whatever is wrong with a scan must not stop the others
            failed.append((case.id, one_line(error)))
            log.warning("left out %s: %s", case.id, one_line(error))
    if not any(len(part.images) for _, part in parts):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed[:3])
        raise InputError(f"none of {len(cases)} scans gave a healthy slice to train on. {reasons}".strip())
    starts = np.cumsum([0, *(len(part.images) for _, part in parts)])[:-1]
    places = [
        np.where(part.places < 0, -1, part.places + start) for start, (_, part) in zip(starts, parts, strict=True)
    ]
    result = SliceSet(
        np.concatenate([part.images for _, part in parts]),
        np.concatenate([part.masks for _, part in parts]),
        tuple(case.subject for case, part in parts for _ in part.places),
        sum(part.left_out for _, part in parts),
        tuple(failed),
        np.concatenate(places) if config.neighbours else None,
    )
    if stored is not None:
        _save(stored, result)
    return result


class Slices(NamedTuple):
    """Healthy slices of one scan, fitted to the working size, and how many were left out for a lesion.

    `places` are those of a :class:`SliceSet`, within `images`.
    """

    images: npt.NDArray[np.float16]
    masks: BoolArray
    left_out: int
    places: npt.NDArray[np.int64]


def _read(case: Case, config: DataConfig) -> Slices:
    volume = read_nifti(case.image)
    mask = read_mask(case.mask, volume, "brain mask") if case.mask else None
    others = [read_channel(path, volume) for path in case.others]
    prepared = prepare(volume, mask, config, others)
    brain = prepared.mask.mean((1, 2)) >= config.min_brain_fraction
    diseased = np.zeros_like(brain)
    if case.label:
        diseased = lesion_slices(read_mask(case.label, volume, "lesion label"), prepared.grid)
    seen = np.arange(len(brain))[:, None] + np.array((0, *config.offsets))  # (S, 1 + neighbours)
    beyond = (seen < 0) | (seen >= len(brain))
    seen = seen.clip(0, len(brain) - 1)
    diseased = (diseased[seen] & ~beyond).any(1)
    keep = brain & ~diseased
    stored = np.unique(seen[keep])
    images = fit_size(prepared.slices[stored], config.size, -1.0).astype(np.float16)
    masks = fit_size(prepared.mask[stored], config.size, False)
    places = np.where(beyond[keep], -1, np.searchsorted(stored, seen[keep]))
    return Slices(images, masks, int((brain & diseased).sum()), places)


def fit_size(stack: Array, size: tuple[int, int], fill: float) -> Array:
    """Crop or pad the last two axes around their centre.

    Args:
        stack: (S, H, W) or (S, C, H, W).
        size: Wanted (H, W).
        fill: Value of new pixels.
    """
    for axis, want in zip((-2, -1), size, strict=True):
        have = stack.shape[axis]
        first = (have - want) // 2
        if first > 0:
            stack = np.take(stack, range(first, first + want), axis)
        elif have < want:
            before = (want - have) // 2
            pad = [(0, 0)] * stack.ndim
            pad[axis] = (before, want - have - before)
            stack = np.pad(stack, pad, constant_values=fill)
        elif have > want:
            stack = np.take(stack, range(want), axis)
    return stack


def _key(cases: Sequence[Case], config: DataConfig) -> str:
    """Hash what the slices depend on: scans, masks and labels by path, size and time, the settings and the version."""
    scans = [[case.id, *map(_stamp, (*case.images, case.mask, case.label))] for case in cases]
    text = json.dumps([scans, config.model_dump(mode="json"), __version__])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(path: Path | None) -> tuple[str, int, int] | None:
    """Return path, size and time of a file; None if there is none."""
    if path is None or not path.is_file():
        return None
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns


def _save(path: Path, slices: SliceSet) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = json.dumps({"subjects": slices.subjects, "left_out": slices.left_out, "failed": slices.failed})
    with atomic_path(path) as temporary:
        places = np.empty((0, 1), np.int64) if slices.places is None else slices.places
        np.savez(temporary, images=slices.images, masks=slices.masks, places=places, facts=np.array(facts))


def _load(path: Path) -> SliceSet | None:
    """Read a copy; None if it is missing or damaged, so that the scans are read again."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            failed = tuple((name, reason) for name, reason in facts["failed"])
            places, subjects = stored["places"], tuple(facts["subjects"])
            return SliceSet(
                stored["images"],
                stored["masks"],
                subjects,
                facts["left_out"],
                failed,
                places if len(places) else None,
            )
    except Exception as error:  # NumPy, zip and JSON each raise their own
        log.warning("the cache %s is damaged (%s); reading the scans again", path.name, error)
        return None
