"""Read an infer output folder: ``cases.tsv``, sidecars, and the paths of maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maediff.calibration import Form
from maediff.errors import InputError, MAEDiffError
from maediff.files import read_json
from maediff.notes import read_notes
from maediff.paths import found_path
from maediff.scoring import anomaly_mask
from maediff.tables import read_table
from maediff.typing import BoolArray
from maediff.volume import Volume, read_mask, read_nifti, same_grid

FINISHED = ("done", "skipped")
_KINDS = {
    "anomaly": "anomaly",
    "reconstruction": "reconstruction",
    "anomaly-mask": "mask",
    "uncertainty": "uncertainty",
}


@dataclass(frozen=True)
class Cut:
    """Threshold and smallest finding that a person chose for a map.

    Attributes:
        threshold: Voxels strictly above it are anomalous.
        min_size_mm3: Smallest finding that is kept.
    """

    threshold: float
    min_size_mm3: float


@dataclass(frozen=True)
class OutputCase:
    """One row of ``cases.tsv`` with its files.

    Attributes:
        case: The case's id.
        status: ``done``, ``skipped`` (finished in an earlier run) or ``failed``.
        message: Why it failed, or notes for the user.
        score: Scan-level score; NaN if there is none.
        volume_ml: Anomalous volume, ml; NaN if there is none.
        seconds: Time taken; NaN if unknown.
        sidecar: The scan's JSON; empty if there is none.
        folder: Folder of its files.
        files: Paths that exist, keyed ``anomaly``, ``reconstruction``, ``mask`` and ``uncertainty``.
        cut: Choice that replaces the mask of infer, if any.
    """

    case: str
    status: str
    message: str
    score: float
    volume_ml: float
    seconds: float
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    files: Mapping[str, Path] = field(default_factory=dict)
    cut: Cut | None = None

    @property
    def has_mask(self) -> bool:
        """Whether there is an anomaly mask, written or chosen."""
        return self.cut is not None or "mask" in self.files

    @property
    def finished(self) -> bool:
        """Whether the scan has a map."""
        return self.status in FINISHED and "anomaly" in self.files

    @property
    def threshold(self) -> float | None:
        """The calibrated threshold, or None."""
        value = self.sidecar.get("threshold")
        return None if value is None else float(value)

    @property
    def sort(self) -> tuple[str, Form]:
        """Contrast and form of the scan, which decide the healthy scans that it is compared with."""
        return str(self.sidecar.get("contrast", "")), self.sidecar.get("form", "")

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about the scan, with their levels."""
        return read_notes(self.sidecar)

    @property
    def image(self) -> Path | None:
        """The scan, if it is still at its recorded path."""
        return found_path(self.sidecar.get("image"), self.folder, self.sidecar)

    @property
    def mask(self) -> Path | None:
        """The brain mask that infer used, if any and if it is still at its recorded path."""
        return found_path(self.sidecar.get("mask"), self.folder, self.sidecar)


def read_shown_scan(case: OutputCase, anomaly: Volume) -> tuple[Volume | None, str]:
    """Read the scan that a map belongs to, or tell in a sentence why it cannot be shown beside it."""
    if case.image is None:
        return None, "The scan is no longer where it was, so it is not shown."
    try:
        scan = read_nifti(case.image)
    except MAEDiffError as error:
        return None, f"The scan is not shown: {error}."
    if not same_grid(scan, anomaly):
        return None, "The scan's grid is not that of its map, so it is not shown."
    return scan, ""


def read_outputs(out_dir: Path) -> list[OutputCase]:
    """Read the cases of an infer output folder, in the order of ``cases.tsv``.

    Args:
        out_dir: Folder that ``maediff infer`` wrote.

    Returns:
        All cases, failed ones included.

    Raises:
        InputError: There is no readable ``cases.tsv`` with a ``case`` and a ``status`` column.
    """
    out_dir = Path(out_dir)
    tables = sorted(out_dir.glob("cases*.tsv"), key=lambda path: (path.stat().st_mtime_ns, path.name))  # latest last
    if not tables:
        raise InputError(f"{out_dir} has no cases.tsv; give the folder that `maediff infer -o` wrote")
    sidecars = _sidecars(out_dir)
    cases: dict[str, OutputCase] = {}
    for table in tables:
        for row in read_table(table, ("case", "status")).rows:
            cases[row["case"]] = _case(row, sidecars, out_dir)
    return list(cases.values())


def read_anomaly_mask(case: OutputCase, volume: Volume) -> BoolArray | None:
    """Return the anomaly mask that infer wrote, or that of a person's threshold; None if there is neither.

    Args:
        case: A finished case.
        volume: Its map.

    Raises:
        InputError: The mask cannot be read.
        GeometryError: It is on another grid.
    """
    if case.cut is not None:
        return anomaly_mask(volume.data, case.cut.threshold, volume.spacing_mm, case.cut.min_size_mm3)
    if "mask" not in case.files:
        return None
    found: BoolArray = read_mask(case.files["mask"], volume, "anomaly mask")
    return found


def _case(row: Mapping[str, str], sidecars: Mapping[str, Path], out_dir: Path) -> OutputCase:
    path = sidecars.get(row["case"])
    sidecar = read_json(path) if path else {}
    score = _number(row.get("score"))
    return OutputCase(
        case=row["case"],
        status=row["status"],
        message=row.get("message", ""),
        score=_number(sidecar.get("score")) if math.isnan(score) else score,
        volume_ml=_number(row.get("anomalous_volume_ml")),
        seconds=_number(row.get("seconds")),
        sidecar=sidecar,
        folder=path.parent if path else out_dir,
        files=_files(row["case"], path, sidecar, out_dir),
    )


def _sidecars(out_dir: Path) -> dict[str, Path]:
    """Return sidecars keyed by the case that they name, and by their own stem."""
    found: dict[str, Path] = {}
    others = {table.parent for table in out_dir.rglob("cases*.tsv")} - {out_dir}  # output folders of other runs
    for path in sorted(out_dir.rglob("*anomaly*.json")):
        if path.name.startswith(".") or not others.isdisjoint(path.parents):
            continue
        content = read_json(path)
        found.setdefault(path.name.removesuffix("_anomaly.json"), path)
        if "case" in content:
            found[str(content["case"]).strip()] = path  # as tables are read
    return found


def _files(case: str, sidecar_path: Path | None, sidecar: Mapping[str, Any], out_dir: Path) -> dict[str, Path]:
    """Return the existing files that the sidecar names, else those that follow the naming rules."""
    folder = sidecar_path.parent if sidecar_path else out_dir
    outputs = sidecar.get("outputs")
    named = outputs if isinstance(outputs, Mapping) else {}
    found = {}
    for kind, key in _KINDS.items():
        candidates = [place / str(named[key]) for place in (folder, out_dir) if named.get(key)]
        candidates += [folder / f"{case}_{kind}.nii.gz"]
        if sidecar_path:
            candidates += [folder / _bids_name(sidecar_path.name.removesuffix(".json"), kind)]
        existing = next((path for path in candidates if path.is_file()), None)
        if existing:
            found[key] = existing
    return found


def _bids_name(stem: str, kind: str) -> str:
    """Return the sibling's name for ``x_desc-anomaly_T2w`` or ``x_anomaly``."""
    entities, marker, suffix = stem.partition("_desc-anomaly_")
    if not marker:
        return f"{stem.removesuffix('_anomaly')}_{kind}.nii.gz"
    return (
        f"{entities}_label-anomaly_mask.nii.gz" if kind == "anomaly-mask" else f"{entities}_desc-{kind}_{suffix}.nii.gz"
    )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
