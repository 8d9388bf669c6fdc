"""Inference: windows slid over slices, one scan in memory, and whole cohorts on disk."""
