"""A self-contained HTML report with pictures."""

from __future__ import annotations

from maediff.report.html import write_report

__all__ = ["write_report"]
