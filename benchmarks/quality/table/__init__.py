"""The benchmark table: every method on the same data, budget, post-processing and statistics."""
