"""Transform a scan to working slices, and results back to the scan."""

from maediff.working.pipeline import WorkingScan, prepare, prepare_label
from maediff.working.spatial import lesion_slices

__all__ = ["WorkingScan", "lesion_slices", "prepare", "prepare_label"]
