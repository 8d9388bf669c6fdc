"""Cross-validation on real FLAIR: every patient is tested once, by trainings that never saw it."""
