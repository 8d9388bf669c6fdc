"""Transform a scan to working slices, and results back to the scan."""

from maediff.working.pipeline import WorkingScan, prepare, prepare_label, turned
from maediff.working.spatial import is_volumetric, lesion_slices

__all__ = ["WorkingScan", "is_volumetric", "lesion_slices", "prepare", "prepare_label", "turned"]
