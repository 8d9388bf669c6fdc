"""Anomaly maps as DICOM: a Parametric Map and a SEG that belong to the patient, study and frame of the input."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maediff._version import __version__
from maediff.dicom.files import packages, series_folders
from maediff.dicom.headers import export_headers, export_number, name_sources
from maediff.dicom.objects import blame
from maediff.dicom.series import Series, quiet, read_series
from maediff.errors import ConfigError, GeometryError, InputError, MAEDiffError, OutputError
from maediff.files import atomic_path, file_sha256, read_json
from maediff.paths import found_path
from maediff.typing import Array
from maediff.volume import GRID_TOLERANCE_VOXELS, read_map, read_mask, read_nifti
from maediff.working.resample import index_map, resample

log = logging.getLogger(__name__)

_SAME_SCAN = 0.9  # correlation; heads of two people in one place stay well below
_MAX_LO = 64  # characters of a DICOM long string


@dataclass(frozen=True)
class Exported:
    """Outcome of one series.

    Attributes:
        case: Its name, as :func:`maediff.dicom.convert_dicom` gave it.
        status: ``done``, ``failed``, or ``no map`` if the results hold no map of it.
        files: The DICOM files written.
        message: Why it failed.
        notes: Header values that were cleared or brought to the form of the standard, by name.
    """

    case: str
    status: Literal["done", "failed", "no map"]
    files: tuple[Path, ...] = ()
    message: str = ""
    notes: tuple[str, ...] = ()


def export_dicom(
    results: str | Path, dicom: str | Path, out: str | Path, series: int | None = None, *, trust_names: bool = False
) -> list[Exported]:
    """Write the maps of DICOM series as ``<case>_anomaly.dcm`` and ``<case>_anomaly-mask.dcm``.

    The map becomes a Parametric Map (32-bit floats, unchanged), the mask at the calibrated threshold a SEG; without
    calibration there is none. Patient, study and frame of reference are those of the input, whose images they
    reference. Maps and series are matched by name; the scan that a map's sidecar names must look like the series,
    and a map whose scan cannot be found is refused. UIDs depend on the input series and the content alone: exported
    again, they are the same objects.

    Args:
        results: Maps on the voxels of the series: what ``infer`` wrote for the converted scans, or ``restore`` for
            prepared ones.
        dicom: The DICOM folder that was converted or prepared.
        out: Folder for the DICOM files.
        series: Series Number, if folders hold several.
        trust_names: Skip that check: only names decide which patient gets which map.

    Raises:
        ConfigError: pydicom or highdicom is missing.
        InputError: No DICOM files, or no map of any of them.
        OutputError: A file cannot be written.
    """
    results, out = Path(results), Path(out)
    found = [
        _export(case, folder, results, out, number=series, trust_names=trust_names)
        for case, folder in series_folders(Path(dicom), [out]).items()
    ]
    if all(item.status == "no map" for item in found):
        raise InputError(
            f"{results} holds no map of a series in {dicom}: looked for {found[0].case}_anomaly.nii.gz; give the "
            "folder that `maediff restore` or `maediff infer` wrote for this DICOM folder"
        )
    return found


def _export(case: str, folder: Path, results: Path, out: Path, *, number: int | None, trust_names: bool) -> Exported:
    path = results / f"{case}_anomaly.nii.gz"
    if not path.is_file():
        return Exported(case, "no map")
    try:
        series = read_series(folder, number)
        if not trust_names:
            _check_scan(read_json(results / f"{case}_anomaly.json"), results, series)
        return _exported(case, path, series, out)
    except (ConfigError, OutputError):  # of no single series
        raise
    except MAEDiffError as error:
        return Exported(case, "failed", message=str(error))
    except Exception as error:  # whatever the packages raise for one series must not stop the others
        log.debug("case %s failed: %s", case, blame(error))
        return Exported(case, "failed", message=f"the series in {folder} cannot be exported: {blame(error)}")


def _exported(case: str, path: Path, series: Series, out: Path) -> Exported:
    """Write the map of a series, and its mask if there is one."""
    anomaly = read_map(path)
    sidecar = read_json(path.with_name(f"{case}_anomaly.json"))
    if not series.frames[0].image.get("SeriesInstanceUID"):
        raise InputError(f"DICOM images in {series.folder} lack SeriesInstanceUID; what is exported must refer to it")
    with quiet():
        headers, notes = export_headers(series.frames, series.grid, packages()[0])
    make = partial(_parametric_map, str(sidecar.get("units") or "residual, working units"), headers)
    files = [_write(out, path, make, series, on_grid(anomaly.data, anomaly.affine, series, path))]
    path = path.with_name(f"{case}_anomaly-mask.nii.gz")
    if path.is_file():
        mask = read_mask(path, anomaly, "anomaly mask")
        make = partial(_segmentation, _facts(sidecar), headers)
        files.append(_write(out, path, make, series, on_grid(mask, anomaly.affine, series, path)))
    return Exported(case, "done", tuple(files), notes=(*series.notes, *notes))


def on_grid(values: Array, affine: Array, series: Series, path: Path) -> Array:
    """Turn a map to the array axes of its series, (slices, rows, columns); no value is interpolated.

    Raises:
        GeometryError: The map does not lie on the voxels of the series.
    """
    target = np.asarray(series.grid.get_affine("RAS"), np.float64)
    slices, rows, columns = series.grid.spatial_shape
    matrix = index_map(affine, target)
    turn = np.rint(matrix)
    corners = np.array([(*corner, 1) for corner in product((0, slices - 1), (0, rows - 1), (0, columns - 1))])
    places = corners @ turn.T
    fits = np.abs(corners @ matrix.T - places).max() < GRID_TOLERANCE_VOXELS
    if not fits or [*places[:, :3].min(0)] != [0, 0, 0] or [*(places[:, :3].max(0) + 1)] != list(values.shape):
        raise GeometryError(
            f"{path} does not lie on the voxels of the DICOM series in {series.folder}; bring maps of prepared scans "
            "back with `maediff restore` first"
        )
    return resample(values, turn, (slices, rows, columns), order=0)


def _check_scan(sidecar: Mapping[str, Any], folder: Path, series: Series) -> None:
    """Refuse maps of another scan: series and maps are matched by name, and a mix-up must not reach an archive.

    The scan that infer read may be stripped or corrected, so that it need not equal the series, but it looks like it.

    Raises:
        InputError: The scan and the series show different things, or the scan cannot be found.
    """
    path = found_path(sidecar.get("image"), folder, sidecar)
    if path is None:
        raise InputError(
            f"cannot check that the maps belong to the DICOM series in {series.folder}: {_unknown(sidecar)}; put it "
            "back, or overrule the check with --trust-names if you know that the names fit"
        )
    scan = read_nifti(path)
    values = on_grid(scan.data, scan.affine, series, path)
    seen = values != 0
    likeness = float(np.corrcoef(values[seen], series.grid.array[seen])[0, 1])
    if not likeness > _SAME_SCAN:
        raise InputError(
            f"the maps are of {path}, which shows something else than the DICOM series in {series.folder} "
            f"(correlation {likeness:.2f}); give the DICOM folder that these maps came from"
        )


def _unknown(sidecar: Mapping[str, Any]) -> str:
    """Say why the scan of a map is unknown."""
    named = sidecar.get("image")
    return f"the scan {named} that they were made from is gone" if named else "their sidecar names no scan"


def _facts(sidecar: Mapping[str, Any]) -> dict[str, str]:
    """Collect the facts about the algorithm for the SEG, as far as infer recorded them."""
    return {name: str(sidecar[name]) for name in ("model_hash", "threshold") if sidecar.get(name) is not None}


def _write(out: Path, path: Path, make: Callable[..., Any], series: Series, values: Array) -> Path:
    """Build a DICOM object from an array on the grid of the series, and write it atomically."""
    name = path.name.removesuffix(".nii.gz")
    key = f"{series.frames[0].image.SeriesInstanceUID} {name} {file_sha256(path)}"
    common = {
        "series_instance_uid": _uid("series", key),
        "sop_instance_uid": _uid("instance", key),
        "instance_number": 1,
        "manufacturer": "MAEDiff developers",
        "manufacturer_model_name": "MAEDiff",
        "software_versions": __version__,
        "device_serial_number": "0",
    }
    with quiet():
        made = make(series.grid.with_array(values), common)
        name_sources(made, series.frames, packages()[0])
        with atomic_path(out / f"{name}.dcm") as temporary:
            made.save_as(temporary)
    return out / f"{name}.dcm"


def _parametric_map(units: str, headers: Sequence[Any], grid: Any, common: Mapping[str, Any]) -> Any:
    pydicom, hd = packages()
    low, high = float(grid.array.min()), float(grid.array.max())
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="anomaly",
        lut_explanation=units[:_MAX_LO],
        unit=pydicom.sr.codedict.codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
    )
    window = hd.VOILUTTransformation(
        window_center=(low + high) / 2,
        window_width=high - low if high > low else 1.0,  # a map of zeros has no width
        voi_lut_function="LINEAR_EXACT",
    )
    return hd.pm.ParametricMap(
        headers,
        grid.astype(np.float32),
        **common,
        series_number=export_number(headers[0], 0),
        series_description="MAEDiff anomaly map, research use only",
        content_label="ANOMALY_MAP",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
    )


def _segmentation(parameters: Mapping[str, str], headers: Sequence[Any], grid: Any, common: Mapping[str, Any]) -> Any:
    pydicom, hd = packages()
    codes = pydicom.sr.codedict.codes
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly (research use only)",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            "MAEDiff", codes.DCM.ArtificialIntelligence, __version__, parameters=dict(parameters) or None
        ),
        anatomic_regions=[codes.SCT.Brain],
    )
    return hd.seg.Segmentation(
        headers,
        grid.astype(np.uint8),
        "BINARY",
        [description],
        **common,
        series_number=export_number(headers[0], 1),
        series_description="MAEDiff anomaly mask, research use only",
        content_label="ANOMALY_MASK",
    )


def _uid(kind: str, key: str) -> str:
    """Derive a UID, 2.25 and a name-based UUID (DICOM PS3.5 B.2): what is equal gets the same one."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'maediff {kind} {key}').int}"
