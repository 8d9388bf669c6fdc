"""Whole jobs over many scans: train a model, calibrate it, score a cohort. The command line calls these."""
