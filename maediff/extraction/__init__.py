"""Find the brain in a raw head scan of any contrast: a small network trained on synthetic heads."""

from maediff.extraction.brain import Extraction, extract_brain

__all__ = ["Extraction", "extract_brain"]
