"""Map scans to the template's space, if `maediff prepare` registered them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maediff.files import read_json
from maediff.notes import read_notes
from maediff.typing import DoubleArray
from maediff.volume import Volume, grid_distance, stem_of

logger = logging.getLogger(__name__)
_SAME_MM = 0.1


def to_template(volume: Volume, image: Path | None, sidecar: Mapping[str, Any] | None = None) -> DoubleArray | None:
    """Find the affine map from a scan's RAS mm to the template's.

    Maps that `maediff restore` brought back carry it in their sidecar. For maps of a prepared scan it follows from
    ``<scan>_prepare.json`` beside the scan, if that describes the map's grid.

    Args:
        volume: The scan or its map.
        image: The scan's file; None if it is not known.
        sidecar: The map's sidecar.

    Returns:
        Matrix (4, 4), or None if nothing is recorded.
    """
    restored = _matrix((sidecar or {}).get("to_template_mm"))
    if restored is not None or image is None:
        return restored
    record = _record(volume, image)
    to_raw = _matrix(record.get("prepared_to_raw_mm"))
    to_scan = _matrix((record.get("registration") or {}).get("template_to_scan"))
    if to_raw is None or to_scan is None:
        return None
    found: DoubleArray = np.linalg.inv(to_scan) @ to_raw
    return found


def preparation_notes(volume: Volume) -> tuple[str, ...]:
    """Return the notes of ``maediff prepare`` on a scan that it wrote, such as an approximate brain mask."""
    return read_notes(_record(volume, volume.source)) if volume.source else ()


def _record(volume: Volume, image: Path) -> dict[str, Any]:
    """Read the record of ``maediff prepare`` beside a scan; empty if there is none or it describes another grid."""
    record = read_json(image.with_name(f"{stem_of(image)}_prepare.json"))
    prepared = _matrix((record.get("prepared_grid") or {}).get("affine"))
    if prepared is None:
        return {}
    if grid_distance(prepared, volume.affine, volume.data.shape) > _SAME_MM:
        logger.warning("%s is not on the grid that prepare made, so what it recorded is left out", volume.name)
        return {}
    return record


def _matrix(value: Any) -> DoubleArray | None:
    """Read an affine map from JSON; None if it is not one."""
    try:
        matrix = np.array(value, dtype=float)
    except (TypeError, ValueError):
        return None
    usable = matrix.shape == (4, 4) and np.isfinite(matrix).all() and abs(np.linalg.det(matrix)) > 1e-6
    return matrix if usable else None
