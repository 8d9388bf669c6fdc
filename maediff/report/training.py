"""How a model was trained, for the report of its maps: the loss over the steps, and how its reconstructions grew."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maediff.errors import InputError
from maediff.report.charts import line_chart
from maediff.report.figures import image_uri

PICTURES = 6
"""Pictures of the validation that are shown: the first, the last, and others evenly between them."""


@dataclass(frozen=True)
class TrainingView:
    """What a report shows of a training.

    Attributes:
        chart: The loss over the steps, as SVG.
        pictures: Step and data URI of pictures of the validation.
        steps: Steps of the training.
        val_loss: The last validation loss; None if none was computed.
    """

    chart: str
    pictures: tuple[tuple[int, str], ...]
    steps: int
    val_loss: float | None


def read_training(run_dir: Path) -> TrainingView:
    """Read `log.csv` and `pictures/` of a run folder.

    Raises:
        InputError: There is no log, or it cannot be read.
    """
    log = run_dir / "log.csv"
    try:
        with log.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        curves = {name: _points(rows, name) for name in ("loss", "val_loss")}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise InputError(
            f"{log} is no log of a training ({type(error).__name__}: {error}); name the folder that `maediff train -o` "
            "wrote"
        ) from error
    if not curves["loss"]:
        raise InputError(f"{log} holds no step yet; wait for the training, or leave its folder out")
    shown = {"training": curves["loss"], "validation": curves["val_loss"]}
    return TrainingView(
        line_chart({name: points for name, points in shown.items() if points}, ("step", "loss")),
        tuple((step, image_uri(path.read_bytes())) for step, path in _spread(_pictures(run_dir / "pictures"))),
        int(curves["loss"][-1][0]),
        curves["val_loss"][-1][1] if curves["val_loss"] else None,
    )


def _points(rows: Sequence[dict[str, str]], name: str) -> list[tuple[float, float]]:
    """List step and value of the rows that have the value."""
    found = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
    return [(step, value) for step, value in found if math.isfinite(value)]


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    numbered = ((path.stem.removeprefix("step-"), path) for path in folder.glob("step-*.png"))
    return sorted((int(number), path) for number, path in numbered if number.isdecimal())


def _spread(pictures: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    places = np.unique(np.linspace(0, len(pictures) - 1, min(PICTURES, len(pictures))).round().astype(int))
    return [pictures[place] for place in places]
