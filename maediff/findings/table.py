"""``<stem>_components.tsv``: one row per finding of a scan."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maediff.errors import InputError
from maediff.findings.components import Component, Findings, locate
from maediff.findings.placing import to_template
from maediff.tables import given, read_table, write_table
from maediff.typing import BoolArray, FloatArray
from maediff.volume import Volume

COLUMNS = (
    *("finding", "volume_ml", "peak"),
    *("centre_i", "centre_j", "centre_k", "centre_x_mm", "centre_y_mm", "centre_z_mm"),
    *("peak_i", "peak_j", "peak_k", "side", "lobe", "lobe_share", "truth_ml", "truth_share"),
)
"""Columns of the table, in their order."""

_ENDINGS = (("_anomaly.nii.gz", "_components.tsv"), ("_anomaly.nii", "_components.tsv"))


def scan_findings(volume: Volume, values: FloatArray, mask: BoolArray, brain: BoolArray) -> Findings:
    """Find every component of a scan's anomaly mask, as ``maediff infer`` lists them.

    Args:
        volume: The scan; a registration that ``maediff prepare`` left beside its file is used.
        values: Anomaly map (X, Y, Z).
        mask: Anomaly mask (X, Y, Z).
        brain: Brain mask (X, Y, Z).
    """
    return locate(mask, brain, volume.affine, to_template(volume, volume.source), values=values)


def component_rows(components: Iterable[Component]) -> list[dict[str, Any]]:
    """Turn components into rows of the table; unknown values are None.

    Returns:
        One mapping per component with the keys :data:`COLUMNS`; ``pandas.DataFrame(rows, columns=list(COLUMNS))``
        is the table in memory.
    """
    return [_row(part) for part in components]


def write_components(path: Path, components: Iterable[Component]) -> Path:
    """Write the table atomically, as TSV; an empty one has its header only.

    Raises:
        OutputError: The file cannot be written.
    """
    write_table(path, component_rows(components), COLUMNS, missing="n/a")
    return path


def largest_finding(table: Path) -> str:
    """Describe size and place of the largest finding; empty if there is none, or no readable table.

    Args:
        table: What :func:`write_components` wrote.
    """
    try:
        rows = read_table(table, ("volume_ml", "centre_x_mm", "centre_y_mm", "centre_z_mm")).rows
        if not rows:
            return ""
        first = rows[0]
        place = " ".join(f"{round(float(first[f'centre_{axis}_mm']))}" for axis in "xyz")
        where = " ".join(text for name in ("side", "lobe") if (text := given(first, name)))
        return f"{float(first['volume_ml']):.1f} ml{f' ({where})' if where else ''} at RAS {place} mm"
    except (InputError, ValueError):
        return ""


def components_path(anomaly: Path) -> Path:
    """Return the path of the table beside an anomaly map.

    Example:
        >>> components_path(Path("out/a_anomaly.nii.gz")).name
        'a_components.tsv'
        >>> components_path(Path("out/sub-01_desc-anomaly_T2w.nii.gz")).name
        'sub-01_desc-components_T2w.tsv'
    """
    for ending, other in _ENDINGS:
        if anomaly.name.endswith(ending):
            return anomaly.with_name(anomaly.name.removesuffix(ending) + other)
    stem = anomaly.name.removesuffix(".gz").removesuffix(".nii")
    return anomaly.with_name(f"{stem.replace('_desc-anomaly_', '_desc-components_')}.tsv")


def _row(part: Component) -> dict[str, Any]:
    (i, j, k), (x, y, z) = part.centre_voxel, part.centre_mm
    peak = part.peak_voxel or (None, None, None)
    cells = (
        *(part.number, round(part.volume_ml, 6), part.peak, i, j, k, x, y, z, *peak),
        *(part.side, part.lobe, part.lobes[0][1] if part.lobes else None, part.truth_ml, part.truth_share),
    )
    return dict(zip(COLUMNS, cells, strict=True))
