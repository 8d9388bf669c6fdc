"""How good is the brain mask that needs no weights? Dice with the reference masks of 10 whole heads (IXI, T1).

python -m benchmarks.brainmask --json benchmarks/results/brainmask.json

N4, an affine registration of the bundled template and its mask, as it is (margin 0 mm) and widened by the margin that
`maediff prepare` uses. One margin holds for all scans; it was chosen among 0 to 4 mm on these ten, so the number with
it is a fit, not a test. Reference masks of another convention would ask for another margin.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import add_common, data_folder, run, say, table
from maediff.data.cases import Case, find_cases
from maediff.evaluation import dice
from maediff.preparation import itk, masks
from maediff.volume import read_mask, read_nifti

MARGINS_MM = (0.0, masks.TEMPLATE_MARGIN_MM)


def measure(data: Path) -> dict[str, Any]:
    """Measure every scan of ``ixi_t1``."""
    cases = find_cases(data_folder("ixi_t1", data))
    found = {case.subject: judge(case) for case in cases}
    names = [*(f"Dice, margin {margin:g} mm" for margin in MARGINS_MM), "taken for stripped"]
    rows = [[subject, *row["dice"], row["taken_for_stripped"]] for subject, row in found.items()]
    say(table(["subject", *names], rows))
    values = np.array([row["dice"] for row in found.values()])
    say(table(["", *names[:-1]], [["mean", *values.mean(0).tolist()], ["lowest", *values.min(0).tolist()]]))
    return {
        "margins_mm": list(MARGINS_MM),
        "subjects": found,
        "mean": values.mean(0).tolist(),
        "lowest": values.min(0).tolist(),
    }


def judge(case: Case) -> dict[str, Any]:
    """Measure one scan; its reference mask is used for the Dice alone."""
    volume = read_nifti(case.image)
    if case.mask is None:
        raise SystemExit(f"{case.id} has no reference mask")
    reference = read_mask(case.mask, volume, "brain mask")
    corrected, _ = itk.correct_bias(volume.data, volume.affine)
    to_scan = itk.register(corrected, volume.affine, None, volume.name)
    shape = reference.shape
    found = [masks.template_mask(volume.affine, (shape[0], shape[1], shape[2]), to_scan, m) for m in MARGINS_MM]
    say(case.id)
    return {"dice": [dice(mask, reference) for mask in found], "taken_for_stripped": masks.looks_stripped(volume)}


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    options = parser.parse_args(arguments)

    def job() -> Mapping[str, Any]:
        return measure(options.data)

    return run(job, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
