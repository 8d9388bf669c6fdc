"""Prepare raw head scans for models, with each step recorded and invertible."""

from maediff.rawhead.prepare import prepare_cohort
from maediff.rawhead.restore import restore_cohort, restore_map
from maediff.rawhead.scan import PrepareSettings, prepare_scan

__all__ = ["PrepareSettings", "prepare_cohort", "prepare_scan", "restore_cohort", "restore_map"]
