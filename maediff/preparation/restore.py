"""The way back: what was computed on a prepared scan, on the voxels of the raw one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maediff.errors import GeometryError, InputError
from maediff.preprocess.resample import index_map, resample
from maediff.store import read_json
from maediff.volume import Volume, grid_distance, read_nifti, write_like

_KINDS = {"anomaly": 1, "reconstruction": 1, "uncertainty": 1, "anomaly-mask": 0}
_SAME_MM = 0.1


def restore_map(
    values: npt.NDArray[Any], sidecar: dict[str, Any], raw: Volume, order: int = 1
) -> npt.NDArray[np.float32]:
    """Bring values from a prepared grid to the raw scan's.

    Args:
        values: On the prepared voxels (X, Y, Z).
        sidecar: What ``<case>_prepare.json`` holds.
        raw: The raw scan; it must be the one that was prepared.
        order: 1 linear, 0 nearest (masks).

    Returns:
        Values on the raw voxels; zero outside the prepared grid's field of view.

    Raises:
        GeometryError: Values or raw scan have another grid than the sidecar says.
    """
    if list(values.shape) != sidecar["prepared_grid"]["shape"]:
        raise GeometryError(f"the map has shape {values.shape}, the prepared scan {sidecar['prepared_grid']['shape']}")
    expected = np.array(sidecar["raw_grid"]["affine"])
    same = list(raw.data.shape) == sidecar["raw_grid"]["shape"]
    if not same or grid_distance(expected, raw.affine, raw.data.shape) > _SAME_MM:
        raise GeometryError(f"{raw.name} is not on the grid of the scan that was prepared; give the original file")
    target = np.linalg.inv(np.array(sidecar["prepared_to_raw_mm"])) @ raw.affine
    matrix = index_map(np.array(sidecar["prepared_grid"]["affine"]), target)
    x, y, z = raw.data.shape
    return resample(values, matrix, (x, y, z), order)


def restore_cohort(results: str | Path, prepared: str | Path, out: str | Path) -> list[Path]:
    """Bring all maps of an output folder of ``infer`` back to the raw scans.

    Args:
        results: Output folder of ``maediff infer`` on prepared scans.
        prepared: Folder that ``maediff prepare`` wrote.
        out: Folder for the maps on raw voxels; names stay.

    Returns:
        The files written.

    Raises:
        InputError: No map of a prepared scan is there, or a raw scan is gone.
        GeometryError: A map or raw scan does not fit its sidecar.
    """
    results, prepared, out = Path(results), Path(prepared), Path(out)
    written = []
    for path in sorted(prepared.glob("*_prepare.json")):
        sidecar = read_json(path)
        case = path.name.removesuffix("_prepare.json")
        maps = {kind: results / f"{case}_{kind}.nii.gz" for kind in _KINDS}
        maps = {kind: file for kind, file in maps.items() if file.is_file()}
        if not maps:
            continue
        raw = read_nifti(Path(str(sidecar["raw"])).expanduser())
        for kind, file in maps.items():
            values = restore_map(_data(file), sidecar, raw, _KINDS[kind])
            if kind == "reconstruction":
                values = _raw_units(values, sidecar)
            written.append(write_like(out / file.name, values, raw, np.uint8 if _KINDS[kind] == 0 else np.float32))
    if not written:
        raise InputError(
            f"{results} holds no map of a scan that was prepared in {prepared}; run maediff infer on "
            f"{prepared / 'cases.csv'} first"
        )
    return written


def _data(path: Path) -> npt.NDArray[Any]:
    import nibabel as nib

    return np.asarray(nib.nifti1.load(path).dataobj)


def _raw_units(values: npt.NDArray[Any], sidecar: dict[str, Any]) -> npt.NDArray[Any]:
    """Undo the percentile scaling (the bias field is not put back); zero stays zero: it is outside the brain."""
    scale = sidecar["intensity"]
    if scale is None:
        return values
    span = (scale["becomes_1000"] - scale["becomes_0"]) / 1000
    return np.where(values == 0, 0, values * span + scale["becomes_0"]).astype(np.float32)
