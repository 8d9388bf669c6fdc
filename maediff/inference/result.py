"""The result for one scan: maps and numbers, as text, picture, table and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from maediff.calibration import Form, among_healthy
from maediff.card import Scope
from maediff.errors import InputError
from maediff.findings import COLUMNS, component_rows, scan_findings
from maediff.inputcheck import HealthyScan, Note, as_dict
from maediff.notes import notes_record, warnings_of
from maediff.typing import BoolArray, FloatMap
from maediff.volume import Volume, image_like, stem_of
from maediff.working.foreground import Background

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

WORKING_UNITS = "working units: 2 spans the scan's intensity scale"


@dataclass(frozen=True, repr=False)
class AnomalyResult:
    """Result for one scan; all arrays are (X, Y, Z) on the scan's own voxel grid.

    Attributes:
        volume: The scan; the first channel if there are several.
        anomaly: Anomaly map, float32, in `units`, never negative, zero outside the brain.
        reconstruction: Healthy reconstruction in the scan's intensity units; outside the brain, the scan itself. With
            several channels, that of the first.
        brain_mask: Voxels for which the map is defined.
        anomaly_mask: Voxels above the calibrated threshold; None if the model has no calibration.
        uncertainty: Standard deviation of the reconstruction over noise draws and timesteps, working units, the mean
            of several channels; None for a single draw.
        score: Scan-level score, the mean of the highest 1 % of the map inside the brain.
        score_percentile: Share of healthy calibration scans that scored lower, 0 to 1; None without calibration.
        threshold: Calibrated threshold of the map, or None.
        threshold_origin: Where the threshold comes from.
        notes: Notes for the user about this scan, information and warnings.
        seconds: Time taken.
        units: Units of the map: working units, or standard deviations if the model has healthy residuals by place.
        background: Background that was found; None if a brain mask was given or if there is none.
        steps: What was read from the scan itself: its brain (`brain_mask`), its contrast and the sign of its lesions.
        checks: Findings of the input check; their sentences are among the notes.
        measures: Measurements of the input check on the scan and its map.
        healthy_scans: Number of scans behind `score_percentile`; None without calibration.
        suspended: Why the model's calibration does not apply; empty if it applies or if there is none.
        contrast: Kind of contrast whose calibration applies, see :class:`maediff.inference.reading.Reading`.
        form: Whether the scan was scored as a "stack", in one orientation, or as a "volume", in all; empty if the model
            has one orientation.
        scope: What the model's card says it was trained on, finds and misses.
        min_size_mm3: Smaller findings are left out of `anomaly_mask`.
    """

    volume: Volume
    anomaly: FloatMap
    reconstruction: FloatMap
    brain_mask: BoolArray
    anomaly_mask: BoolArray | None
    uncertainty: FloatMap | None
    score: float
    score_percentile: float | None
    threshold: float | None
    threshold_origin: str | None
    notes: tuple[str, ...]
    seconds: float
    units: str = WORKING_UNITS
    background: Background | None = None
    steps: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[Note, ...] = ()
    measures: HealthyScan | None = None
    healthy_scans: int | None = None
    suspended: str = ""
    contrast: str = ""
    form: Form = ""
    scope: Scope = field(default_factory=Scope)
    min_size_mm3: float = 0.0

    @property
    def volume_ml(self) -> float | None:
        """Volume of the anomaly mask, ml; None without calibration."""
        if self.anomaly_mask is None:
            return None
        return float(np.count_nonzero(self.anomaly_mask)) * self.volume.voxel_mm3 / 1000

    @property
    def brain_volume_ml(self) -> float:
        """Volume of the brain mask, ml."""
        return float(np.count_nonzero(self.brain_mask)) * self.volume.voxel_mm3 / 1000

    @property
    def warnings(self) -> tuple[str, ...]:
        """The notes that ask for attention before the map is used."""
        return warnings_of(self.notes)

    def image(self, name: str) -> nib.Nifti1Image:
        """Return an array as a NIfTI image with the scan's affine, qform and sform.

        Args:
            name: "anomaly", "reconstruction", "brain_mask", "anomaly_mask" or "uncertainty".

        Raises:
            InputError: Unknown name, or a map that this result does not have.
        """
        names = ("anomaly", "reconstruction", "brain_mask", "anomaly_mask", "uncertainty")
        if name not in names:
            raise InputError(f"a result has no map {name!r}; it has {', '.join(names)}")
        data = getattr(self, name)
        if data is None:
            raise InputError(f"this result has no {name}: {self._why_no(name)}")
        return image_like(data, self.volume, np.uint8 if data.dtype == bool else np.float32)

    def _why_no(self, name: str) -> str:
        if name != "anomaly_mask":
            return "there was a single draw (infer.draws)"
        return f"the calibration is suspended: {self.suspended}" if self.suspended else "the model is not calibrated"

    @property
    def standing(self) -> str:
        """Comparison of the score with those of healthy scans, in words; empty without calibration."""
        return among_healthy(self.score_percentile, self.healthy_scans, self.suspended)

    def __repr__(self) -> str:
        """Describe the result in three lines."""
        return "\n".join(self.describe())

    def describe(self) -> tuple[str, str, str]:
        """Describe the findings, the origin of the threshold and the notes, one line each."""
        scan = stem_of(self.volume.source) if self.volume.source else "an image"
        placed = f", {self.standing}" if self.standing else ""
        brain = f"{self.brain_volume_ml:,.0f} ml of brain"
        anomalous = f"no threshold{f' ({self.suspended})' if self.suspended else ''}, {brain}"
        if self.threshold is not None and self.volume_ml is not None:
            origin = f" ({self.threshold_origin})" if self.threshold_origin else ""
            anomalous = f"{self.volume_ml:,.1f} ml above {self.threshold:.4g}{origin} of {brain}"
        return (
            f"AnomalyResult of {scan}: score {self.score:.3f}{placed}",
            f"  {anomalous}",
            f"  notes: {'; '.join(self.notes) or 'none'}",
        )

    def _repr_html_(self) -> str:
        """Describe the result for a notebook, with a picture."""
        from maediff.report.plots import result_html

        return result_html(self)

    def plot(self, planes: str | tuple[str, ...] = "axial", index: int | None = None) -> Figure:
        """Draw scan, healthy reconstruction, map and mask.

        Args:
            planes: One or several of "axial", "coronal" and "sagittal"; one row of pictures per plane.
            index: Slice of the plane, counted from below, from the back or from the patient's left; if None, that
                of the largest finding, or of the highest map values if there is no finding.

        Returns:
            A matplotlib figure, which a notebook shows if it is the last line of a cell.

        Raises:
            InputError: Unknown plane, or no such slice.
        """
        from maediff.report.plots import result_figure

        return result_figure(self, (planes,) if isinstance(planes, str) else planes, index)

    def components(self) -> pd.DataFrame:
        """List every finding, the largest first: volume, peak, centre in voxels and RAS mm, side and lobe.

        The columns are those of ``<stem>_components.tsv``. Without a threshold there are no findings.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        if self.anomaly_mask is not None:
            found = scan_findings(self.volume, self.anomaly, self.anomaly_mask, self.brain_mask)
            rows = component_rows(found.components)
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and words of the result as plain values, as the sidecar of ``maediff infer`` has them."""
        return {
            "units": self.units,
            "contrast": self.contrast,
            "form": self.form,
            "threshold": self.threshold,
            "threshold_origin": self.threshold_origin,
            "min_size_mm3": self.min_size_mm3,
            "score": self.score,
            "score_percentile": self.score_percentile,
            "volume_ml": self.volume_ml,
            "brain_volume_ml": self.brain_volume_ml,
            "seconds": round(self.seconds, 3),
            "background": None if self.background is None else asdict(self.background),
            "steps": dict(self.steps),
            "healthy_scans": self.healthy_scans,
            "calibration_suspended": self.suspended or None,
            "model": self.scope.to_dict(),
            "input_check": {
                "found": as_dict(self.checks),
                "measures": None if self.measures is None else self.measures.to_dict(),
            },
            **notes_record(self.notes),
        }

    def save(self, folder: str | Path, stem: str | None = None) -> Path:
        """Write maps, mask, findings and numbers as ``maediff infer`` names them.

        Args:
            folder: Output folder; created if it does not exist.
            stem: First part of the file names; the scan's file name without ``.nii.gz``, or "scan", if None.

        Returns:
            The path of the anomaly map.

        Raises:
            OutputError: A file cannot be written.
        """
        from maediff.inference.cohort import save_result

        name = stem or (stem_of(self.volume.source) if self.volume.source else "scan")
        return save_result(self, Path(folder), name)
