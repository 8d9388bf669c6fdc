"""Synthetic head scans of any contrast, drawn on the fly from label maps: anatomy, contrast, pathology, acquisition.

The idea is SynthSeg's (Billot et al. 2023): a network that has seen random anatomy under random contrasts reads scans
of any contrast. Two parts are ours: contrasts follow from tissue relaxation times, and lesions change these times
instead of being painted.
"""
