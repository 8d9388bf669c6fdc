"""Inference: one scan in memory, cohorts on disk, and cohorts on a cluster."""
