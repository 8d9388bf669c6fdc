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
    stored = json.loads((RESULTS / "calibration.json").read_text(encoding="utf-8"))
    settings: list[dict[str, Any]] = stored["results"]["settings"]
    return settings


TABLES: dict[str, Callable[[], str]] = {"calibration": calibration}
