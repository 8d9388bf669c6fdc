"""Content of the viewer: the scans of a run, and the few files that it may serve.

Files are found by the number of a scan and a kind of map, never by a path that a browser names. Maps are served
unchanged, but only if they are inside the output folder after following links. The scan itself is mostly stored
elsewhere: it is read as a scan, and only its voxels on the map's grid are served, so that no other file and no header
field of a patient can leak.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from maediff.errors import InputError, MAEDiffError
from maediff.evaluation.choice import Choice, chosen_notice, read_chosen
from maediff.evaluation.outputs import OutputCase, read_anomaly_mask, read_shown_scan
from maediff.evaluation.ratings import RATINGS, RATINGS_FILE, Rating, append_rating, read_ratings
from maediff.evaluation.reference import Reference
from maediff.findings import Findings
from maediff.notes import notes_record
from maediff.report.figures import (
    colour_table,
    grey_window,
    high_value,
    most_anomalous_voxel,
    plane_slices,
    round_up,
    voxel_from_canonical,
)
from maediff.report.pictures import colour_top, measure_findings
from maediff.typing import BoolArray
from maediff.volume import SUFFIXES, Volume, image_like, read_map, read_mask

SCAN = "scan"
TRUTH = "truth"
MASK = "mask"
KINDS = (SCAN, "reconstruction", "anomaly", MASK, "uncertainty", TRUTH)
"""What there may be of a scan, from the bottom layer up."""

_MAX_LISTED = 500  # findings of a scan


@dataclass(frozen=True)
class Catalogue:
    """The scans of one output folder.

    Attributes:
        root: The output folder, links resolved.
        cases: Its cases: finished ones by falling score, then the others.
        reference: Truths to show, if there are any.
    """

    root: Path
    cases: tuple[OutputCase, ...]
    reference: Reference | None = None
    _shown: dict[int, list[dict[str, Any]]] = field(
        default_factory=dict, repr=False, compare=False
    )  # findings, by scan

    @classmethod
    def of(cls, out_dir: str | Path, reference: str | Path | None = None, choice: Choice | None = None) -> Catalogue:
        """Read an output folder.

        Args:
            out_dir: What ``maediff infer`` wrote.
            reference: Table or folder with the truth; None shows none.
            choice: A threshold that a person chose; masks and findings follow it.

        Raises:
            InputError: It is not one that ``maediff infer`` wrote, no scan in it has a map, or the reference cannot be
                used.
        """
        cases = sorted(
            read_chosen(Path(out_dir), choice), key=lambda c: (not c.finished, -_or(c.score, -math.inf), c.case)
        )
        if not any(case.finished for case in cases):
            raise InputError(f"no scan of {out_dir} has a map; cases.tsv there says why")
        truths = None if reference is None else Reference(Path(reference))
        return cls(Path(out_dir).resolve(), tuple(cases), truths)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The run as plain values for JSON: the shared colour scale and every scan."""
        finished = [case for case in self.cases if case.finished]
        units = {str(case.sidecar["units"]) for case in finished if case.sidecar.get("units")}
        return {
            "units": units.pop() if len(units) == 1 else "residual, working units",
            "top": colour_top(finished),
            "rating": list(RATINGS),
            "colours": colour_table().tolist(),
            "cases": [_described(case) for case in self.cases],
        }

    def details(self, number: int) -> dict[str, Any]:
        """Return details that need the voxels of a scan: where to look first, its findings, and its grey window.

        Args:
            number: Of a finished case in :attr:`cases`.

        Returns:
            Plain values: ``layers`` to load, the most anomalous ``place_mm`` (RAS), the grey ``window``, where the
            colours of the uncertainty end (None without one), ``findings``, ``lesions``, ``notes`` with their
            ``note_levels``, and how RAS mm
            become the scan's voxels (``to_voxel``) and slices (``to_slice``, of the volume with axes to the right, the
            front and the top, whose ``shape`` is given).

        Raises:
            InputError: No finished case has this number, or its map cannot be read.
        """
        case = self._finished(number)
        anomaly = read_map(self._inside(case.files["anomaly"]))
        scan, note = read_shown_scan(case, anomaly)
        truth, why = self._truth(case, anomaly)
        there = {SCAN: scan is not None, TRUTH: truth is not None, MASK: case.has_mask}
        shown = scan if scan is not None else self._reconstruction(case)
        values = np.where(anomaly.data > 0, anomaly.data, 0)
        findings, lesions = self._findings(case, anomaly, truth)
        self._shown[number] = findings or []
        to_voxel = np.linalg.inv(anomaly.affine)
        to_slice = np.linalg.inv(voxel_from_canonical(anomaly.affine, values.shape)) @ to_voxel
        return {
            "layers": [kind for kind in KINDS if there.get(kind, kind in case.files)],
            "place_mm": (anomaly.affine @ [*most_anomalous_voxel(values, anomaly.affine), 1])[:3].tolist(),
            "window": list(grey_window(values if shown is None else shown.data, values > 0)),
            "uncertainty_top": self._uncertainty_top(case, values > 0),
            "findings": findings,
            "lesions": lesions,
            "to_voxel": to_voxel.tolist(),
            "to_slice": to_slice.tolist(),
            "shape": plane_slices(values, anomaly.affine).transpose(2, 1, 0).shape,
            **notes_record([*case.notes, *(text for text in (note, why) if text)]),
        }

    def rate(self, number: int, finding: int, reader: str, rating: str, comment: str = "") -> Rating:
        """Store a reader's rating of a finding in ``ratings.tsv``.

        Args:
            number: Of a finished case in :attr:`cases`.
            finding: Its number, from 1.
            reader: Who rates.
            rating: "real", "artefact" or "unsure".
            comment: Free text.

        Raises:
            InputError: There is no such scan, finding or rating.
            OutputError: The file cannot be written.
        """
        case = self._finished(number)
        findings = self._shown[number] if number in self._shown else self.details(number)["findings"] or []
        part = next((part for part in findings if part["number"] == finding), None)
        if part is None:
            raise InputError(f"{case.case} has no finding {finding}; it has {len(findings)}")
        x, y, z = part["mm"]
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        place = {"x_mm": x, "y_mm": y, "z_mm": z, "volume_ml": round(part["ml"], 6)}
        model = str(case.sidecar.get("model_hash", ""))
        stored = Rating(now, reader.strip(), case.case, finding, rating, comment, model_hash=model, **place)
        append_rating(self.root, stored)
        return stored

    def ratings(self, reader: str) -> list[dict[str, Any]]:
        """List the ratings of one reader only: the number of the scan, the finding and the rating."""
        if not (self.root / RATINGS_FILE).is_file():
            return []
        numbers = {case.case: number for number, case in enumerate(self.cases)}
        return [
            {"number": numbers[item.case], "finding": item.finding, "rating": item.rating, "comment": item.comment}
            | {"mm": [item.x_mm, item.y_mm, item.z_mm] if math.isfinite(item.x_mm + item.y_mm + item.z_mm) else None}
            for item in read_ratings(self.root)
            if item.reader == " ".join(reader.split()) and item.case in numbers
        ]

    def volume(self, number: int, kind: str) -> bytes:
        """Return a map or a scan as gzipped NIfTI.

        Args:
            number: Of a finished case in :attr:`cases`.
            kind: One of :data:`KINDS`.

        Raises:
            InputError: There is none, or it may not be served.
        """
        case = self._finished(number)
        if kind == SCAN:
            scan, note = read_shown_scan(case, read_map(self._inside(case.files["anomaly"])))
            if scan is None:
                raise InputError(note)
            return gzip.compress(image_like(scan.data, scan).to_bytes(), compresslevel=1)
        if kind == TRUTH:
            anomaly = read_map(self._inside(case.files["anomaly"]))
            truth, note = self._truth(case, anomaly)
            if truth is None:
                raise InputError(note or f"{case.case} has no truth")
            return gzip.compress(image_like(truth, anomaly, np.uint8).to_bytes(), compresslevel=1)
        if kind == MASK and case.cut is not None:
            anomaly = read_map(self._inside(case.files["anomaly"]))
            chosen = np.asarray(read_anomaly_mask(case, anomaly))
            return gzip.compress(image_like(chosen, anomaly, np.uint8).to_bytes(), compresslevel=1)
        if kind not in case.files:
            raise InputError(f"{case.case} has no {kind}")
        content = _read_regular(self._inside(case.files[kind]))
        return content if content[:2] == b"\x1f\x8b" else gzip.compress(content, compresslevel=1)

    def _finished(self, number: int) -> OutputCase:
        if not (0 <= number < len(self.cases) and self.cases[number].finished):
            raise InputError(f"no finished scan {number}")
        return self.cases[number]

    def _reconstruction(self, case: OutputCase) -> Volume | None:
        return read_map(self._inside(case.files["reconstruction"])) if "reconstruction" in case.files else None

    def _truth(self, case: OutputCase, anomaly: Volume) -> tuple[BoolArray | None, str]:
        """Read the reference's lesions on the map's grid, or return why they cannot be shown."""
        if self.reference is None:
            return None, ""
        try:
            label = self.reference.find(case).label
            empty: BoolArray = np.zeros(anomaly.data.shape, bool)
            return (empty if label is None else read_mask(label, anomaly, "label")), ""
        except MAEDiffError as error:
            return None, f"truth not shown: {error}"

    def _findings(
        self, case: OutputCase, anomaly: Volume, truth: BoolArray | None
    ) -> tuple[list[dict[str, Any]] | None, list[dict[str, Any]] | None]:
        """Findings and lesions as plain values, numbered as in ``<stem>_components.tsv``."""
        layers: dict[str, Any] = {"map": np.where(anomaly.data > 0, anomaly.data, 0)}
        if MASK in case.files:
            self._inside(case.files[MASK])
        mask = read_anomaly_mask(case, anomaly)
        if mask is not None:
            layers[MASK] = mask
        if truth is not None:
            layers["truth"] = truth
        found = measure_findings(case, anomaly, layers)
        return _plain(found[0]), _plain(found[1])

    def _uncertainty_top(self, case: OutputCase, brain: BoolArray) -> float | None:
        if "uncertainty" not in case.files:
            return None
        spread = read_map(self._inside(case.files["uncertainty"])).data
        return round_up(high_value(spread, brain))

    def _inside(self, path: Path) -> Path:
        """Follow links, and refuse what is no NIfTI file inside the output folder."""
        found = path.resolve()
        if not (found.is_relative_to(self.root) and found.name.endswith(SUFFIXES)):
            raise InputError(f"{path.name} is not a NIfTI file inside the output folder")
        return found


def _read_regular(path: Path) -> bytes:
    """Read a file that is neither a link nor a device, even if it was swapped after the check."""
    flags = [getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]  # as far as the system has them
    descriptor = os.open(path, os.O_RDONLY | sum(flags))
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{path.name} is not a file")
        return stream.read()


def _plain(found: Findings | None) -> list[dict[str, Any]] | None:
    if found is None:
        return None
    return [
        {"number": part.number, "ml": part.volume_ml, "peak": part.peak, "mm": list(part.centre_mm)}
        | {"side": part.side, "lobe": part.lobe, "share": part.truth_share}
        for part in found.components[:_MAX_LISTED]
    ]


def _described(case: OutputCase) -> dict[str, Any]:
    return {
        "case": case.case,
        "finished": case.finished,
        "message": case.message,
        "score": _or(case.score, None),
        "percentile": _number(case.sidecar, "score_percentile"),
        "healthy": _number(case.sidecar, "healthy_scans"),
        "suspended": case.sidecar.get("calibration_suspended"),
        "volume_ml": _or(case.volume_ml, None),
        "threshold": case.threshold,
        "threshold_origin": case.sidecar.get("threshold_origin"),
        "chosen": chosen_notice([case]),
    }


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _or(value: float, otherwise: Any) -> Any:
    return value if math.isfinite(value) else otherwise
