"""Bring results on a prepared scan back to the voxels of the raw scan."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maediff.data.bids import SPACE, describe_derivatives
from maediff.errors import GeometryError, InputError, OutputError, one_line
from maediff.evaluation.outputs import OutputCase, read_outputs
from maediff.files import read_json, write_json
from maediff.locking import folder_lock
from maediff.notes import notes_record, read_notes, warnings_of
from maediff.paths import WRITTEN_IN, found_path, stored_path
from maediff.tables import write_table
from maediff.typing import Array, FloatMap
from maediff.volume import Volume, grid_distance, read_mask, read_nifti, write_like
from maediff.working.resample import index_map, resample

_SAME_MM = 0.1
_MASKS = ("mask", "brain")
"""Outputs of infer that are masks: of the anomaly, and of the brain that it found."""


def restore_map(values: Array, sidecar: dict[str, Any], raw: Volume, order: int = 1) -> FloatMap:
    """Bring values from a prepared grid to the raw scan's.

    Args:
        values: On the prepared voxels (X, Y, Z).
        sidecar: Content of ``<case>_prepare.json``.
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


def restore_cohort(
    results: str | Path, prepared: str | Path, out: str | Path, on_failed: Callable[[str, str], None] | None = None
) -> list[Path]:
    """Bring all maps of an output folder of ``infer`` back to the raw scans.

    The result is an output folder like that of ``infer``, with sidecars and ``cases.tsv``, so that report, evaluate and
    export work on the raw scans' voxels; names are those of ``results``, less BIDS' ``space`` entity.

    Args:
        results: Output folder of ``maediff infer`` on prepared scans.
        prepared: Folder that ``maediff prepare`` wrote.
        out: Folder for the maps on raw voxels.
        on_failed: Called with a case and the reason if its maps cannot be brought back (the raw scan is gone, or is
            not the one that was prepared); the others are.

    Returns:
        The maps written.

    Raises:
        InputError: No map of a prepared scan is there, or none could be brought back.
        OutputError: `out` cannot be written, or another run writes there.
    """
    results, prepared, out = Path(results), Path(prepared), Path(out)
    if out.resolve() == results.resolve():
        raise InputError(f"{out} holds the maps of the prepared scans; choose another folder for those on raw voxels")
    with folder_lock(out):
        return _restore_all(results, prepared, out, on_failed)


def _restore_all(results: Path, prepared: Path, out: Path, on_failed: Callable[[str, str], None] | None) -> list[Path]:
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    suffixes: list[str] = []
    errors: list[Exception] = []
    for output in read_outputs(results):
        sidecar = read_json(prepared / f"{output.case}_prepare.json")
        volume_ml, status, message = output.volume_ml, output.status, output.message
        if sidecar and output.finished:
            try:
                maps, volume_ml = _restored(output, sidecar, results, prepared, out)
                message = "; ".join(filter(None, [message, *_untold(output, sidecar)]))
            except OutputError:
                raise
            except Exception as error:  # whatever is wrong with a scan must not stop the others
                volume_ml, status, message = math.nan, "failed", one_line(error)
                errors.append(error)
                if on_failed:
                    on_failed(output.case, message)
                maps = []
            written += maps
            suffixes += [path.name.removesuffix(".nii.gz").rpartition("_")[2] for path in maps if "_desc-" in path.name]
        elif output.finished:
            continue  # of another folder of prepared scans
        row = {"case": output.case, "status": status, "score": output.score, "anomalous_volume_ml": volume_ml}
        warnings = None if status == "failed" else len(warnings_of((*output.notes, *_untold(output, sidecar))))
        rows.append(row | {"seconds": output.seconds, "message": message, "warnings": warnings})
    if not written:
        none = f"{results} holds no map of a scan that was prepared in {prepared}; run maediff infer on "
        raise errors[0] if errors else InputError(f"{none}{prepared / 'cases.csv'} first")
    write_table(out / "cases.tsv", rows, list(rows[0]), missing="n/a")
    if suffixes:
        describe_derivatives(out, (suffix for suffix in suffixes if suffix != "mask"))
    return written


def _restored(
    output: OutputCase, sidecar: dict[str, Any], results: Path, prepared: Path, out: Path
) -> tuple[list[Path], float]:
    """Bring the maps of a case back, then write its sidecar; returns the maps and the anomalous volume, ml."""
    path = found_path(sidecar.get("raw"), prepared, sidecar)
    if path is None:
        raise InputError(
            f"the raw scan {sidecar.get('raw')} of {output.case} is not where it was when it was prepared; "
            "put it back, or prepare it again"
        )
    raw = read_nifti(path)
    folder = out / output.folder.relative_to(results)
    named = output.sidecar.get("outputs") or {kind: path.name for kind, path in output.files.items()}
    maps, volume_ml = {}, output.volume_ml
    for kind, name in named.items():
        is_mask = kind in _MASKS
        values = restore_map(_data(output.folder / name), sidecar, raw, order=0 if is_mask else 1)
        if kind == "reconstruction":
            brain = read_mask(prepared / "raw_space" / f"{output.case}_brainmask.nii.gz", raw, "brain mask")
            values = np.where(brain, _raw_units(values, sidecar), raw.data)
        if kind == "mask":
            volume_ml = float(np.count_nonzero(values)) * raw.voxel_mm3 / 1000
        maps[kind] = write_like(folder / _raw_name(name), values, raw, np.uint8 if is_mask else np.float32)
    if "anomaly" in maps:
        mask = prepared / "raw_space" / f"{output.case}_brainmask.nii.gz"
        facts: dict[str, Any] = {"image": stored_path(path, folder), "mask": stored_path(mask, folder)}
        facts |= {WRITTEN_IN: str(folder.resolve())}
        facts |= {"volume_ml": None if math.isnan(volume_ml) else volume_ml}  # without a threshold there is none
        facts |= {"outputs": {kind: path.name for kind, path in maps.items()}, "restored": True}
        to_scan = (sidecar["registration"] or {}).get("template_to_scan")
        facts |= {"to_template_mm": np.linalg.inv(np.array(to_scan)).tolist()} if to_scan else {}
        facts |= notes_record((*output.notes, *_untold(output, sidecar)))
        kept = {name: value for name, value in output.sidecar.items() if name != "further_channels"}  # not these grids
        stem = maps["anomaly"].name.removesuffix(".nii.gz")
        write_json(folder / f"{stem}.json", {"case": output.case, **kept, **facts})
    return list(maps.values()), volume_ml


def _untold(output: OutputCase, sidecar: dict[str, Any]) -> list[str]:
    """List the notes of prepare that the maps' sidecar lacks, since earlier versions did not carry them."""
    return [note for note in read_notes(sidecar) if note not in output.notes]


def _raw_name(name: str) -> str:
    return name.replace(f"_space-{SPACE}", "")


def _data(path: Path) -> Array:
    import nibabel as nib

    return np.asarray(nib.nifti1.load(path).dataobj)


def _raw_units(values: Array, sidecar: dict[str, Any]) -> Array:
    """Undo the percentile scaling (the bias field is not put back); zero stays zero: it is outside the brain."""
    scale = sidecar["intensity"]
    if scale is None:
        return values
    span = (scale["becomes_1000"] - scale["becomes_0"]) / 1000
    return np.where(values == 0, 0, values * span + scale["becomes_0"]).astype(np.float32)
