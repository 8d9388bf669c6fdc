"""Label maps for training, in memory, with a copy on disk so that a resumed run starts quickly."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from maediff._version import __version__
from maediff.config import HeadsConfig
from maediff.files import atomic_path
from maediff.heads.labels import BrainLabels, find_heads, read_head
from maediff.heads.lesions import LesionMask, read_masks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadSet:
    """Label maps and lesion masks that synthetic slices are drawn from.

    Attributes:
        heads: Label maps around the brain.
        masks: Real lesion masks for their shapes; may be empty.
        failed: Label maps that could not be read; always empty, since training does not start with an unreadable one.
    """

    heads: tuple[BrainLabels, ...]
    masks: tuple[LesionMask, ...]
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        """Names of the heads."""
        return tuple(head.name for head in self.heads)


def split_heads(folder: str | Path, fraction: float) -> tuple[list[Path], list[Path]]:
    """Split the label maps of a folder into those for training and the last ones by name, which are held out.

    Raises:
        InputError: The folder holds no label maps.
    """
    paths = find_heads(folder)
    count = min(max(1, round(fraction * len(paths))), len(paths) - 1) if len(paths) > 1 else 0
    return paths[: len(paths) - count], paths[len(paths) - count :] or paths


def read_head_set(paths: Sequence[Path], config: HeadsConfig, cache: Path | None = None) -> HeadSet:
    """Read label maps and lesion masks.

    Args:
        paths: Label maps.
        config: Where the lesion masks are.
        cache: Folder for copies of the label maps; each is reused while its file stays the same.

    Raises:
        InputError: A file cannot be used.
    """
    masks: list[LesionMask] = []
    if config.white_matter_masks is not None:
        masks += read_masks(config.white_matter_masks, in_white=True)
    if config.lesion_masks is not None:
        masks += read_masks(config.lesion_masks, in_white=False)
    return HeadSet(tuple(_cached(path, cache) for path in paths), tuple(masks))


def _cached(path: Path, cache: Path | None) -> BrainLabels:
    """Read a label map, or its copy."""
    if cache is None:
        return read_head(path).around_brain()
    facts = json.dumps([str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns, __version__])
    stored = cache / f"head-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(stored, allow_pickle=False) as parts:
            return BrainLabels(
                path.name, *(torch.from_numpy(parts[name]) for name in ("classes", "depth", "box", "pool"))
            )
    except Exception as error:  # NumPy and zip each raise their own; a missing copy is the usual one
        if stored.exists():
            log.warning("the cache %s is damaged (%s); reading the label map again", stored.name, error)
    head = read_head(path).around_brain()
    cache.mkdir(parents=True, exist_ok=True)
    with atomic_path(stored) as temporary:
        np.savez(
            temporary,
            classes=head.classes.numpy(),
            depth=head.depth.numpy(),
            box=head.box.numpy(),
            pool=head.pool.numpy(),
        )
    return head
