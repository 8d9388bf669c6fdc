"""Tables of measured numbers, from `benchmarks/results/`, so that no page repeats them by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def calibration() -> str:
    """Promised and measured false-positive rates, in Markdown."""
    lines = [
        "| calibration | tested on | promised, voxels per million | measured | lowest, highest scan | ml a scan: "
        "promised and measured |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for setting in calibration_settings():
        for row in setting["rates"]:
            cells = [
                f"{setting['calibrated_on']} ({setting['calibration_scans']} scans)",
                f"{setting['tested_on']} ({setting['test_scans']} scans)",
                f"{row['promised_voxels_per_million']:,.0f}",
                f"{row['measured_voxels_per_million']:,.0f}",
                f"{row['lowest_scan_per_million']:,.0f} to {row['highest_scan_per_million']:,.0f}",
                f"{row['promised_ml_per_scan']:.2f}, {row['measured_ml_per_scan']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def calibration_settings() -> list[dict[str, Any]]:
    """Read the settings of the stored calibration benchmark."""
    settings: list[dict[str, Any]] = _stored("calibration")["settings"]
    return settings


def locations() -> str:
    """AUPRC with and without healthy residuals by place, in Markdown."""
    lines = [
        "| lesion | scans | z-score | working units | by place | difference | p |",
        "|---|---:|---|---|---|---|---:|",
    ]
    for row in _stored("locations")["summary"]:
        auprc = row["auprc"]
        parts = [row["zscore_auprc"], auprc["working_units"], auprc["by_place"], auprc["difference"]]
        cells = [row["kind"], str(row["scans"]), *map(_estimate, parts), f"{auprc['p']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def locations_promise() -> str:
    """Promised and measured false-positive rates of maps in working units and by place, in Markdown."""
    lines = ["| maps | promised, voxels per million | measured | lowest, highest scan |", "|---|---:|---:|---:|"]
    for entry in _stored("locations")["false_positives"]:
        for rate in entry["per_million"]:
            ends = f"{rate['lowest_scan']:,.0f} to {rate['highest_scan']:,.0f}"
            lines.append(f"| {entry['maps']} | {rate['promised']:,.0f} | {rate['measured']:,.0f} | {ends} |")
    return "\n".join(lines)


def _estimate(value: dict[str, Any]) -> str:
    return f"{value['mean']:.3f} ({value['ci_low']:.3f} to {value['ci_high']:.3f})"


def _stored(name: str) -> dict[str, Any]:
    """Read the results of a benchmark."""
    results: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]
    return results


TABLES: dict[str, Callable[[], str]] = {
    "calibration": calibration,
    "locations": locations,
    "locations_promise": locations_promise,
}
