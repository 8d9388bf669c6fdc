"""The cross-validation as Markdown, from stored cells alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import cell as shown
from benchmarks.common import markdown_table, wrapped
from benchmarks.quality.cross_validation.folds import COMPARED, FOLDS, path_of
from benchmarks.quality.cross_validation.statistics import difference, mean
from benchmarks.quality.table.rows import Row, seed_cells
from maediff.errors import InputError
from maediff.files import read_json
from maediff.typing import DoubleArray

BEGIN, END = "<!-- begin: python -m benchmarks.quality.cross_validation --render -->", "<!-- end -->"
OURS = "maediff"
METRICS = {
    "auprc": "AUPRC",
    "auprc_plain": "AUPRC, median of 15 mm alone",
    "auroc": "AUROC",
    "dice": "Dice, healthy threshold",
    "sensitivity": "lesions found at 2 false positives a scan",
    "healthy_l1": "healthy l1",
}
COMPARED_METRICS = ("auprc", "auprc_plain", "auroc", "dice", "sensitivity")
LENGTHS = ("median_mm", "half_depth_mm", "support_mm")
"""Of the post-processing, those that validation chooses."""
Cells = list[dict[str, Any]]


@dataclass(frozen=True)
class Scored:
    """A row whose cells are all there.

    Attributes:
        row: The row.
        trainings: For each seed, its cells by fold.
    """

    row: Row
    trainings: Mapping[int, Cells]

    @property
    def ours(self) -> bool:
        """Whether it is a variant of MAEDiff."""
        return self.row.name.split("-")[0] == OURS

    def values(self, metric: str) -> DoubleArray:
        """Collect a metric (trainings, patients) of the trainings whose cells have it; NaN if it is not defined."""
        found = [[scan.get(metric) for cell in cells for scan in cell["patients"]] for cells in self.trainings.values()]
        values = np.asarray(found, dtype=np.float64)
        measured = np.isfinite(values).any(1)
        return values[measured] if measured.any() else values[:1]


def load(results: Path, folds: Sequence[int] = range(FOLDS)) -> tuple[list[Scored], list[str]]:
    """Read the stored cells.

    Args:
        results: Folder of cells.
        folds: That a training must have cells of to count.

    Returns:
        Rows with at least one whole training, and a sentence for each other row or training.

    Raises:
        InputError: Cells of different protocols.
    """
    scored, missing = [], []
    protocols: dict[str, Path] = {}
    for row in COMPARED:
        trainings = {}
        for seed in _seeds(results, row.name):
            paths = [path_of(results, row.name, fold, seed) for fold in folds]
            absent = [fold for fold, path in zip(folds, paths, strict=True) if not path.is_file()]
            if absent:
                missing.append(f"{row.title}, seed {seed}: no cell of fold {', '.join(map(str, absent))}")
                continue
            trainings[seed] = [read_json(path)["results"] for path in paths]
            for path, cell in zip(paths, trainings[seed], strict=True):
                protocols.setdefault(str(cell["protocol"]), path)
        if trainings:
            scored.append(Scored(row, trainings))
    if len(protocols) > 1:
        told = "; ".join(f"{path}: {protocol}" for protocol, path in protocols.items())
        raise InputError(f"cells of different protocols cannot be compared: {told}; keep one protocol per --results")
    return scored, missing


def markdown(results: Path, folds: Sequence[int] = range(FOLDS)) -> str:
    """Render all tables, see :func:`load`."""
    scored, missing = load(results, folds)
    parts = []
    if scored:
        parts += [_protocol(scored[0], folds), _quality(scored)]
        for reference in _references(scored):
            parts += [f"Minus {reference.row.title}:", _differences(scored, reference)]
        parts.append(_cost(scored))
    if not scored or missing:
        parts.append("Not computed yet:\n\n" + "\n".join(f"- {text}" for text in missing or ["every row"]))
    return "\n\n".join(parts)


def best(scored: Sequence[Scored], *, ours: bool) -> Scored | None:
    """Find the variant of MAEDiff, or the rival, with the highest mean AUPRC; None if there is none."""
    rows = [row for row in scored if row.ours is ours]
    return max(rows, key=lambda row: mean(row.values("auprc"), n=0).mean, default=None)


def _seeds(results: Path, row: str) -> list[int]:
    """List the seeds with a cell, 0 always among them."""
    names = [path.name for fold in range(FOLDS) for path in seed_cells(results, row, f"fold{fold}")]
    return sorted({0, *(int(name.removesuffix(".json").rpartition("seed")[2]) for name in names)})


def _references(scored: Sequence[Scored]) -> list[Scored]:
    return [row for row in (best(scored, ours=True), best(scored, ours=False)) if row is not None]


def _protocol(first: Scored, folds: Sequence[int]) -> str:
    protocol = next(iter(first.trainings.values()))[0]["protocol"]
    patients = first.values("auprc").shape[1]
    return wrapped(
        f"{patients} patients, folds {', '.join(map(str, folds))}, {protocol['budget_tflop']:g} TFLOP of training for "
        f"each method and fold, brain masks `{protocol['masks']}`."
    )


def _quality(scored: Sequence[Scored]) -> str:
    lines = [
        [row.row.title, str(len(row.trainings)), *(shown(mean(row.values(metric))) for metric in METRICS)]
        for row in scored
    ]
    return markdown_table(["method", "trainings", *METRICS.values()], lines)


def _differences(scored: Sequence[Scored], reference: Scored) -> str:
    lines = [
        [
            row.row.title,
            *(shown(difference(row.values(metric), reference.values(metric))) for metric in COMPARED_METRICS),
        ]
        for row in scored
        if row is not reference
    ]
    return markdown_table(["method", *(METRICS[metric] for metric in COMPARED_METRICS)], lines)


def _cost(scored: Sequence[Scored]) -> str:
    lines = []
    for row in scored:
        cells = [cell for cells in row.trainings.values() for cell in cells]
        spent = cells[0]["training"]
        timesteps = [cell["timestep"] for cell in cells]
        lengths = ["/".join(f"{cell['score'][name]:g}" for name in LENGTHS) for cell in cells]
        lines.append(
            [
                row.row.title,
                _counted(sorted(timesteps)) if len(row.row.timesteps) > 1 else "-",
                _counted(sorted(lengths, key=lambda one: -lengths.count(one))),
                f"{spent['steps']:,}" if spent["samples"] else "-",
                f"{cells[0]['parameters'] / 1e6:.2f}",
                f"{cells[0]['gflop_per_slice']:.2f}",
                f"{float(np.median(row.values('seconds_a_slice'))):.3f}",
            ]
        )
    chosen = ["t chosen (trainings)", "median/half depth/support chosen, mm (trainings)"]
    return markdown_table(["method", *chosen, "training steps", "parameters, M", "GFLOP a slice", "s a slice"], lines)


def _counted(values: Sequence[Any]) -> str:
    """List different values in order, each with how often it occurs."""
    return ", ".join(f"{value} ({values.count(value)})" for value in dict.fromkeys(values))
