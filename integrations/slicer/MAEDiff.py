#!/usr/bin/env python-real
"""Command-line module of 3D Slicer: one scan in, anomaly map and mask out; MAEDiff.xml beside it describes the form."""

from __future__ import annotations

import argparse
import sys

import nibabel as nib

import maediff


def main(arguments: list[str] | None = None) -> int:
    """Score a scan; messages for people go to stderr, progress to stdout, where Slicer reads it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputVolume")
    parser.add_argument("anomalyMap")
    parser.add_argument("anomalyMask")
    parser.add_argument("--model", default="heads")
    parser.add_argument("--threshold", type=float, default=0.0)
    chosen = parser.parse_args(arguments)
    try:
        model = maediff.load_model(chosen.model, threshold=chosen.threshold or None)
        result = model.predict(chosen.inputVolume, on_batch=_progress)
        nib.save(result.image("anomaly"), chosen.anomalyMap)
        nib.save(result.image("anomaly_mask"), chosen.anomalyMask)
    except maediff.MAEDiffError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stderr.write(f"{result!r}\n")
    return 0


def _progress(done: int, total: int) -> None:
    sys.stdout.write(f"<filter-progress>{done / max(total, 1):.3f}</filter-progress>\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
