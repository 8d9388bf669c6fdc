"""Render the benchmark table as Markdown and as a figure, from stored cells only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import cell as shown
from benchmarks.common import markdown_table, wrapped, write_between
from benchmarks.quality.table.rows import DATA_SETS, ROWS, DataSet, Row, cell_path, seed_cells
from maediff.errors import InputError
from maediff.evaluation import Estimate, bootstrap_ci
from maediff.evaluation.bootstrap import paired_p_value
from maediff.files import atomic_path, read_json

RESAMPLES = 2000
BEGIN, END = "<!-- begin: python -m benchmarks.quality.table --render -->", "<!-- end -->"
REFERENCES = ("maediff", "maediff-window", "pddpm", "maediff-no-mae")
"""Rows that every other row is compared with, patient by patient."""
COLUMNS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "auprc_unfiltered": "AUPRC, no median filter",
    "dice": "Dice, healthy threshold",
    "dice_validated": "Dice, validation threshold",
    "dice_oracle": "oracle Dice",
    "healthy_l1": "healthy l1",
}
SUMMARY_COLUMNS = (
    "AUPRC, gliomas",
    "minus MAEDiff",
    "Dice, gliomas, healthy threshold",
    "AUPRC, phantoms",
    "GFLOP per slice, gliomas",
)
PUBLISHED = {
    "intensity threshold": ("19.7 / 20.3", "6.2 / 4.2", "4.4 / 1.7", "9.4 / 4.7"),
    "VAE": ("28.8 / 25.7", "6.2 / 4.5", "15.1 / 15.3", "5.2 / 4.2"),
    "AE": ("31.5 / 28.8", "7.2 / 5.7", "14.9 / 14.8", "4.5 / 4.2"),
    "DAE": ("45.4 / 49.4", "3.9 / 4.5", "8.5 / 12.5", "7.3 / 6.3"),
    "DDPM": ("44.3 / 50.0", "4.8 / 6.4", "12.9 / 15.7", "10.0 / 8.9"),
    "pDDPM": ("49.4 / 54.7", "9.4 / 9.9", "13.0 / 17.4", "8.0 / 7.8"),
    "cDDPM": ("53.4 / 58.8", "11.5 / 11.1", "20.0 / 22.2", "9.9 / 9.3"),
}
"""Dice / AUPRC in %, trained on IXI T2: Behrendt et al., cDDPM, Table 3. Other authors, other data."""
SEEDS_NOTE = "Methods trained again with other seeds. All other numbers on this page are of the first training:"
Cells = dict[str, dict[str, Any]]


def load_cells(results: Path, data: str) -> Cells:
    """Read the stored cells of a data set, in the order of the rows; those that are missing are left out."""
    paths = {row.name: cell_path(results, data, row.name) for row in ROWS}
    return {name: read_json(path)["results"] for name, path in paths.items() if path.is_file()}


def markdown(results: Path) -> str:
    """Render all tables of all data sets.

    Args:
        results: Folder of cells.

    Raises:
        InputError: There is no cell.
    """
    parts = []
    for data in DATA_SETS.values():
        cells = load_cells(results, data.name)
        if cells:
            parts += [f"### {data.title}", *_data_set(results, data, cells)]
    if not parts:
        raise InputError(f"no cells in {results}; compute some: python -m benchmarks.quality.table")
    parts += ["### Published figures", _published()]
    return "\n\n".join(parts)


def summary(results: Path) -> str:
    """Render one table with the main numbers of every row: quality on real gliomas, quality on phantoms, and cost.

    Args:
        results: Folder of cells.

    Raises:
        InputError: There is no cell of real gliomas.
    """
    real, phantom = (
        {name: cell for name, cell in load_cells(results, data).items() if "patients" in cell}
        for data in ("lgg_flair", "phantom")
    )
    if not real:
        raise InputError(f"no cells in {results / 'lgg_flair'}; compute some: python -m benchmarks.quality.table")
    lines = []
    for row in (row for row in ROWS if row.name in real):
        cell = real[row.name]
        same = row.name == "maediff" or "maediff" not in real
        quality = shown(estimate(cell, "auprc")), shown(estimate(cell, "dice"))
        gap = "-" if same else shown(_difference(cell, real["maediff"]))
        synthetic = shown(estimate(phantom[row.name], "auprc")) if row.name in phantom else "-"
        lines.append([row.title, quality[0], gap, quality[1], synthetic, f"{cell['gflop_per_slice']:.2f}"])
    return markdown_table(["method", *SUMMARY_COLUMNS], lines)


def details_page(page: Path) -> Path:
    """Name the page of all tables, which is beside the page of the summary: `benchmark-details.md`."""
    return page.with_name(f"{page.stem}-details{page.suffix}")


def write_markdown(page: Path, results: Path) -> None:
    """Put the summary between the page's two markers, and all tables between those of :func:`details_page`.

    Raises:
        InputError: A page lacks the markers.
    """
    write_between(page, BEGIN, END, summary(results))
    write_between(details_page(page), BEGIN, END, markdown(results))


def draw(path: Path, results: Path) -> None:
    """Draw the AUPRC of every method with its interval, one panel per data set, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = [(data, load_cells(results, data.name)) for data in DATA_SETS.values() if data.trained_on is None]
    columns = [(data, {k: v for k, v in cells.items() if "patients" in v}) for data, cells in columns]
    columns = [(data, cells) for data, cells in columns if cells]
    figure = Figure(figsize=(4.2 * len(columns) + 2.6, 5.4), layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    rows = [row for row in ROWS if any(row.name in cells for _, cells in columns)]
    for axis, (data, cells) in zip(axes, columns, strict=True):
        for place, row in enumerate(reversed(rows)):
            if row.name in cells:
                value = estimate(cells[row.name], "auprc")
                colour = "#b3261e" if row.name.startswith("maediff") else "#37474f"
                axis.plot([value.ci_low, value.ci_high], [place, place], color=colour, lw=1.6, solid_capstyle="round")
                axis.plot([value.mean], [place], "o", color=colour, ms=5)
        axis.set_title(data.title, fontsize=10)
        axis.set_xlabel("AUPRC, mean over scans, 95 % bootstrap interval", fontsize=8)
        axis.set_xlim(0, None)
        axis.grid(axis="x", color="#e0e0e0", lw=0.7)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(rows)), [row.title for row in reversed(rows)], fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "maediff", "svg.fonttype": "none"}), atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def estimate(cell: Mapping[str, Any], metric: str, kind: str | None = None) -> Estimate:
    """Average a metric over a cell's test scans, or over those with one kind of lesion, with its interval."""
    rows = [row for row in cell["patients"] if kind is None or row["kind"] == kind]
    return bootstrap_ci(values(rows, metric), RESAMPLES)


def values(rows: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """List a metric of all scans; NaN if it is not defined."""
    return [float("nan") if row[metric] is None else float(row[metric]) for row in rows]


def _data_set(results: Path, data: DataSet, cells: Cells) -> list[str]:
    rows = [row for row in ROWS if row.name in cells]
    scored = [row for row in rows if "patients" in cells[row.name]]
    refused = [
        wrapped(f"- {row.title}: {cells[row.name]['refused']}", indent="  ")
        for row in rows
        if "refused" in cells[row.name]
    ]
    kinds = sorted({scan["kind"] for row in scored for scan in cells[row.name]["patients"]} - {""})
    parts = [_quality(scored, cells)]
    if kinds:
        parts += ["AUPRC by kind of lesion:", _by_kind(scored, cells, kinds)]
    if data.trained_on is None:
        parts += [_cost(scored, cells)]
    seeds = _other_seeds(results, data, scored, cells)
    parts += [SEEDS_NOTE, seeds] if seeds else []
    compared = [name for name in REFERENCES if name in cells]
    if compared and data.trained_on is None:
        parts += ["Paired differences in AUPRC on the same scans, with the p-value of a two-sided paired bootstrap:"]
        parts += [_differences(scored, cells, compared)]
    if refused:
        parts.append("Refused:\n\n" + "\n".join(refused))
    absent = [row.title for row in ROWS if row.tried_on(data.name) and row.name not in cells]
    if absent:
        parts.append(f"Not computed: {'; '.join(absent)}.")
    return parts


def _quality(rows: Sequence[Row], cells: Cells) -> str:
    lines = [[row.title, *(shown(estimate(cells[row.name], name)) for name in COLUMNS)] for row in rows]
    return markdown_table(["method", *COLUMNS.values()], lines)


def _other_seeds(results: Path, data: DataSet, rows: Sequence[Row], cells: Cells) -> str:
    """Show the AUPRC of every training of the methods that were trained more than once; empty if there are none."""
    found = {
        row.name: [cells[row.name], *(read_json(path)["results"] for path in seed_cells(results, data.name, row.name))]
        for row in rows
    }
    found = {name: trainings for name, trainings in found.items() if len(trainings) > 1}
    titles = {row.name: row.title for row in rows}
    lines = []
    for name, trainings in found.items():
        means = [estimate(cell, "auprc").mean for cell in trainings]
        tried = [max(cell["validation_auprc"].values()) for cell in trainings]
        each = " ".join(f"{value:.3f}" for value in means)
        lines.append([titles[name], each, f"{np.mean(means):.3f}", " ".join(f"{value:.3f}" for value in tried)])
    return (
        markdown_table(["method", "AUPRC of each training", "mean", "validation AUPRC of each"], lines) if lines else ""
    )


def _by_kind(rows: Sequence[Row], cells: Cells, kinds: Sequence[str]) -> str:
    lines = [[row.title, *(shown(estimate(cells[row.name], "auprc", kind)) for kind in kinds)] for row in rows]
    return markdown_table(["method", *kinds], lines)


def _cost(rows: Sequence[Row], cells: Cells) -> str:
    lines = []
    for row in rows:
        cell = cells[row.name]
        spent, slices = cell["training"], values(cell["patients"], "seconds_a_slice")
        lines.append(
            [
                row.title,
                f"{cell['timestep']}" if len(row.timesteps) > 1 else "-",
                f"{spent['steps']:,}" if spent["samples"] else "-",
                f"{spent['tflop']:.1f}" if spent["samples"] else "-",
                f"{cell['parameters'] / 1e6:.2f}",
                f"{cell['gflop_per_slice']:.2f}",
                f"{float(np.median(slices)):.3f}",
            ]
        )
    header = [
        "method",
        "t chosen",
        "training steps",
        "training TFLOP",
        "parameters, M",
        "GFLOP per slice",
        "s per slice",
    ]
    return markdown_table(header, lines)


def _differences(rows: Sequence[Row], cells: Cells, compared: Sequence[str]) -> str:
    titles = {row.name: row.title for row in rows}
    lines = []
    for row in rows:
        ours = values(cells[row.name]["patients"], "auprc")
        found = []
        for name in compared:
            other = values(cells[name]["patients"], "auprc")
            gap = _difference(cells[row.name], cells[name])
            found += ["-", "-"] if name == row.name else [shown(gap), f"{paired_p_value(ours, other):.4f}"]
        lines.append([row.title, *found])
    return markdown_table(["method", *(head for name in compared for head in (f"minus {titles[name]}", "p"))], lines)


def _difference(cell: Mapping[str, Any], other: Mapping[str, Any]) -> Estimate:
    """Average the paired difference in AUPRC of two cells over their scans, with its interval."""
    ours, theirs = values(cell["patients"], "auprc"), values(other["patients"], "auprc")
    return bootstrap_ci(np.subtract(ours, theirs), RESAMPLES)


def _published() -> str:
    lines = [[name, *figures] for name, figures in PUBLISHED.items()]
    note = (
        "**Measured by other authors on other data**: Dice / AUPRC in %, trained on IXI T2 (Behrendt et al., cDDPM, "
        "Table 3). Independent runs of pDDPM reached a Dice of 39.5 to 41.6 on BraTS21. These numbers cannot be "
        "compared directly with those above."
    )
    return f"{wrapped(note)}\n\n{markdown_table(['method', 'BraTS21', 'MSLUB', 'ATLAS', 'WMH'], lines)}"
