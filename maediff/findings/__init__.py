"""Findings: the components of an anomaly mask, with their size and place."""

from __future__ import annotations

from maediff.findings.components import Component, Findings, LobeVolume, locate
from maediff.findings.placing import preparation_notes, to_template
from maediff.findings.table import (
    COLUMNS,
    component_rows,
    components_path,
    largest_finding,
    scan_findings,
    write_components,
)

__all__ = [
    "COLUMNS",
    "Component",
    "Findings",
    "LobeVolume",
    "component_rows",
    "components_path",
    "largest_finding",
    "locate",
    "preparation_notes",
    "scan_findings",
    "to_template",
    "write_components",
]
