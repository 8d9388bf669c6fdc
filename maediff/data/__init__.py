"""Which scans there are, their slices, and the synthetic cohort."""
