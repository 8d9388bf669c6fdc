"""Find scans, read their slices, and build the synthetic cohort."""
