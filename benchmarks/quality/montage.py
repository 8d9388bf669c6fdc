"""Rows of axial pictures with titles, as PNG. Pictures of real scans stay in the run folder: their licence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maediff.files import atomic_path
from maediff.report.figures import (
    TRUTH_COLOUR,
    Frame,
    frame_around,
    grey,
    heat,
    overlay,
    plane_slices,
    plane_spacing_mm,
)

COLUMNS = ("scan", "healthy reconstruction", "anomaly map", "truth")
_INCHES = 2.6
RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """One scan to show; arrays (X, Y, Z) on one grid.

    Attributes:
        title: Text beside the row.
        affine: Voxel to RAS mm.
        scan: Intensities.
        reconstruction: Healthy reconstruction in the same units.
        anomaly: Map.
        brain: Brain mask.
        truth: Lesion mask.
    """

    title: str
    affine: npt.NDArray[np.float64]
    scan: npt.NDArray[Any]
    reconstruction: npt.NDArray[Any]
    anomaly: npt.NDArray[Any]
    brain: npt.NDArray[np.bool_]
    truth: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Section:
    """The axial slice with most of the lesion, cut to the brain.

    Attributes:
        affine: Voxel to RAS mm.
        frame: What is cut out of which slice.
        scan: It in the scan, in grey.
        truth: The lesion over it.
        window: Intensities that are black and white.
    """

    affine: npt.NDArray[np.float64]
    frame: Frame
    scan: RGB
    truth: RGB
    window: tuple[float, float]

    @classmethod
    def of(
        cls,
        affine: npt.NDArray[np.float64],
        scan: npt.NDArray[Any],
        brain: npt.NDArray[np.bool_],
        truth: npt.NDArray[np.bool_],
    ) -> Section:
        """Choose the slice; arrays (X, Y, Z) on one grid."""
        lesion = plane_slices(truth, affine)
        frame = frame_around(plane_slices(brain, affine), int(lesion.sum((1, 2)).argmax()), plane_spacing_mm(affine))
        low, high = (float(q) for q in np.percentile(scan[brain], (0.5, 99.8)))
        picture = grey(frame.cut(plane_slices(scan, affine)), low, high)
        return cls(affine, frame, picture, overlay(picture, frame.cut(lesion), TRUTH_COLOUR), (low, high))

    def cut(self, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Cut another array (X, Y, Z) of the grid."""
        return self.frame.cut(plane_slices(data, self.affine))


def panels(shown: Shown, top: float) -> list[RGB]:
    """Cut the slice with most of the lesion: scan, reconstruction, map up to ``top``, truth over the scan."""
    section = Section.of(shown.affine, shown.scan, shown.brain, shown.truth)
    healthy = grey(section.cut(shown.reconstruction), *section.window)
    return [section.scan, healthy, heat(section.cut(shown.anomaly), top), section.truth]


def write_montage(path: Path, rows: Sequence[Shown], heading: str) -> None:
    """Write one row per scan; the colour scale, in working units, is the same for all rows."""
    top = max(float(np.percentile(row.anomaly[row.brain], 99.5)) for row in rows) or 1.0
    heading = f"{heading}\nmap: black 0 to yellow {top:.3g} working units. Research use only"
    write_pictures(path, COLUMNS, [Pictured(row.title, row.affine, panels(row, top)) for row in rows], heading)


@dataclass(frozen=True)
class Pictured:
    """A row of finished pictures of one size, cut along an axial plane of a scan with this affine."""

    title: str
    affine: npt.NDArray[np.float64]
    pictures: Sequence[RGB]


def write_pictures(path: Path, columns: Sequence[str], rows: Sequence[Pictured], heading: str) -> None:
    """Write rows of pictures with a title over each column."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES * len(columns), _INCHES * len(rows) + 0.5), layout="constrained")
    figure.suptitle(heading, fontsize=9)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        height, width = plane_spacing_mm(row.affine)
        for axis, title, picture in zip(line, columns, row.pictures, strict=True):
            axis.imshow(picture, aspect=height / width)
            axis.set_title(title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(row.title, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
