"""What the viewer shows: the scans of a run, and the few files that it may hand out.

Files are found by the number of a scan and a kind of map, never by a path that a browser names. Maps are handed out as
they lie, but only where they lie inside the output folder, links followed. The scan itself mostly lies elsewhere: it
is read as a scan, and only its voxels on the map's grid are handed out, so that no other file and no header field of a
patient can leave by this door.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from maediff.errors import InputError, MAEDiffError
from maediff.evaluation.outputs import OutputCase, read_outputs
from maediff.report.figures import colour_table, grey_window, high_value, most_anomalous_voxel, scale_top
from maediff.typing import BoolArray
from maediff.volume import SUFFIXES, Volume, image_like, read_map, read_nifti

SCAN = "scan"
KINDS = (SCAN, "reconstruction", "anomaly", "mask", "uncertainty")
"""What there may be of a scan, from the bottom layer up."""

_OTHER_GRID = "the scan's grid is not that of its map, so it is not shown"
_GONE = "the scan is no longer where it was, so it is not shown"


@dataclass(frozen=True)
class Catalogue:
    """The scans of one output folder.

    Attributes:
        root: The output folder, links resolved.
        cases: Its cases: finished ones by falling score, then the others.
    """

    root: Path
    cases: tuple[OutputCase, ...]

    @classmethod
    def of(cls, out_dir: str | Path) -> Catalogue:
        """Read an output folder.

        Raises:
            InputError: It is not one that ``maediff infer`` wrote, or no scan in it has a map.
        """
        cases = sorted(read_outputs(Path(out_dir)), key=lambda c: (not c.finished, -_or(c.score, -math.inf), c.case))
        if not any(case.finished for case in cases):
            raise InputError(f"no scan of {out_dir} has a map; cases.tsv there says why")
        return cls(Path(out_dir).resolve(), tuple(cases))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The run as plain values for JSON: the shared colour scale and every scan."""
        finished = [case for case in self.cases if case.finished]
        thresholds = [case.threshold for case in finished if case.threshold is not None]
        scores = [case.score for case in finished if math.isfinite(case.score)]
        units = {str(case.sidecar["units"]) for case in finished if case.sidecar.get("units")}
        return {
            "units": units.pop() if len(units) == 1 else "residual, working units",
            "top": scale_top(scores, max(thresholds, default=None)),
            "colours": colour_table().tolist(),
            "cases": [_described(case) for case in self.cases],
        }

    def details(self, number: int) -> dict[str, Any]:
        """Tell what only the voxels of a scan say: where to look first, and its grey window.

        Args:
            number: Of a finished case in :attr:`cases`.

        Returns:
            Plain values: ``layers`` to load, the most anomalous ``place_mm`` (RAS), the grey ``window``,
            where the colours of the uncertainty end (None without one) and ``notes``.

        Raises:
            InputError: No finished case has this number, or its map cannot be read.
        """
        case = self._finished(number)
        anomaly = read_map(self._inside(case.files["anomaly"]))
        scan, note = _scan(case, anomaly)
        layers = [kind for kind in KINDS if (kind in case.files if kind != SCAN else scan is not None)]
        shown = scan if scan is not None else self._reconstruction(case)
        values = np.where(anomaly.data > 0, anomaly.data, 0)
        return {
            "layers": layers,
            "place_mm": (anomaly.affine @ [*most_anomalous_voxel(values, anomaly.affine), 1])[:3].tolist(),
            "window": list(grey_window(values if shown is None else shown.data, values > 0)),
            "uncertainty_top": self._uncertainty_top(case, values > 0),
            "notes": [str(text) for text in _list(case.sidecar.get("notes"))] + ([note] if note else []),
        }

    def volume(self, number: int, kind: str) -> bytes:
        """Return a map or a scan as gzipped NIfTI.

        Args:
            number: Of a finished case in :attr:`cases`.
            kind: One of :data:`KINDS`.

        Raises:
            InputError: There is none, or it may not be handed out.
        """
        case = self._finished(number)
        if kind == SCAN:
            scan, note = _scan(case, read_map(self._inside(case.files["anomaly"])))
            if scan is None:
                raise InputError(note)
            return gzip.compress(image_like(scan.data, scan).to_bytes(), compresslevel=1)
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

    def _uncertainty_top(self, case: OutputCase, brain: BoolArray) -> float | None:
        if "uncertainty" not in case.files:
            return None
        spread = read_map(self._inside(case.files["uncertainty"])).data
        return scale_top([high_value(spread, brain)], None)

    def _inside(self, path: Path) -> Path:
        """Follow links, and refuse what is no NIfTI file inside the output folder."""
        found = path.resolve()
        if not (found.is_relative_to(self.root) and found.name.endswith(SUFFIXES)):
            raise InputError(f"{path.name} is not a NIfTI file inside the output folder")
        return found


def _scan(case: OutputCase, anomaly: Volume) -> tuple[Volume | None, str]:
    """Read the scan that a map belongs to, or tell why it cannot be shown."""
    if case.image is None:
        return None, _GONE
    try:
        scan = read_nifti(case.image)
    except MAEDiffError as error:
        return None, f"the scan is not shown: {error}"
    same = scan.data.shape == anomaly.data.shape and np.allclose(scan.affine, anomaly.affine, atol=1e-3)
    return (scan, "") if same else (None, _OTHER_GRID)


def _read_regular(path: Path) -> bytes:
    """Read a file that is neither a link nor a device, however it was swapped since it was looked at."""
    flags = [getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]  # as far as the system has them
    descriptor = os.open(path, os.O_RDONLY | sum(flags))
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{path.name} is not a file")
        return stream.read()


def _described(case: OutputCase) -> dict[str, Any]:
    return {
        "case": case.case,
        "finished": case.finished,
        "message": case.message,
        "score": _or(case.score, None),
        "percentile": _number(case.sidecar, "score_percentile"),
        "volume_ml": _or(case.volume_ml, None),
        "threshold": case.threshold,
        "threshold_origin": case.sidecar.get("threshold_origin"),
    }


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _or(value: float, otherwise: Any) -> Any:
    return value if math.isfinite(value) else otherwise


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
