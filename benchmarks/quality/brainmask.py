"""How good is the brain mask that needs no weights, and does ``prepare`` know a stripped scan from a head?

python -m benchmarks.quality.brainmask --json benchmarks/results/brainmask.json

Mask: Dice with the reference masks of 10 whole heads (IXI, T1). N4, an affine registration of the bundled template and
its mask, widened by a margin. Margin 0 is the template's brain as it is, with nothing fitted. ``left_out`` gives each
scan the margin that is best on the other nine, so that no scan has a say in its own; ``shipped`` is the margin of
``maediff prepare``. All ten share one convention of what a brain is; masks of another would ask for another margin.

Stripped: whether ``looks_stripped`` is right on heads (IXI T1, LGG FLAIR) and on brains (MSLUB, synthetic).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import Benchmark, data_folder, say, shared_data, table
from maediff.data.cases import Case, find_cases
from maediff.data.phantom import MODALITIES, subject
from maediff.data.synthesis import as_volume
from maediff.evaluation import dice
from maediff.rawhead import itk, masks
from maediff.volume import Volume, read_mask, read_nifti
from maediff.working.foreground import looks_stripped

BENCHMARK = Benchmark(__file__, __doc__, page="docs/prepare.md", results=("brainmask.json",))
MARGINS_MM = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
PHANTOMS = 3  # of each contrast


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the fallback mask on ``ixi_t1`` and the detection of stripped scans on all there is."""
    cases = find_cases(data_folder("ixi_t1", options.data))
    found = {case.subject: judge(case) for case in cases}
    values = np.array(list(found.values()))
    margins, honest = leave_one_out(values)
    shipped = values[:, MARGINS_MM.index(masks.TEMPLATE_MARGIN_MM)]
    chosen = {"margin 0 mm": values[:, 0], "left out": honest, f"shipped, {masks.TEMPLATE_MARGIN_MM:g} mm": shipped}
    rows = [[name, *row] for name, *row in zip(found, *(column.tolist() for column in chosen.values()), strict=True)]
    rows += [[name, *(float(how(c)) for c in chosen.values())] for name, how in (("mean", np.mean), ("lowest", np.min))]
    say(table(["Dice", *chosen], rows))
    return {
        "margins_mm": list(MARGINS_MM),
        "dice_by_margin": found,
        "margin_0": summary(values[:, 0]),
        "left_out": summary(honest) | {"margins_mm": margins},
        "shipped": summary(shipped) | {"margin_mm": masks.TEMPLATE_MARGIN_MM},
        "stripped": detection(options.data),
    }


def judge(case: Case) -> list[float]:
    """Measure one scan at each margin; its reference mask is used for the Dice alone."""
    volume = read_nifti(case.image)
    if case.mask is None:
        raise SystemExit(f"{case.id} has no reference mask")
    reference = read_mask(case.mask, volume, "brain mask")
    corrected, _ = itk.correct_bias(volume.data, volume.affine)
    to_scan = itk.register(corrected, volume.affine, None, volume.name)
    shape = reference.shape
    found = [masks.template_mask(volume.affine, (shape[0], shape[1], shape[2]), to_scan, m) for m in MARGINS_MM]
    say(case.id)
    return [dice(mask, reference) for mask in found]


def leave_one_out(values: npt.NDArray[np.float64]) -> tuple[list[float], npt.NDArray[np.float64]]:
    """Give each scan the margin with the highest mean on all others.

    Args:
        values: Dice (scans, margins).

    Returns:
        The margin of each scan, mm, and the Dice that it has with it.
    """
    others = values.sum(0) - values
    best = others.argmax(1)
    return [MARGINS_MM[index] for index in best], values[np.arange(len(values)), best]


def summary(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean and lowest."""
    return {"mean": float(values.mean()), "lowest": float(values.min())}


def detection(data: Path) -> dict[str, Any]:
    """Count on each set how many scans are taken for stripped, beside the truth."""
    result = {}
    for name, truth, volumes in sets(data):
        taken = [looks_stripped(volume) for volume in volumes]
        result[name] = {"scans": len(taken), "stripped": truth, "taken_for_stripped": sum(taken)}
    say(
        table(
            ["set", "scans", "stripped", "taken for stripped"], [[name, *row.values()] for name, row in result.items()]
        )
    )
    return result


def sets(data: Path) -> Iterator[tuple[str, bool, Iterator[Volume]]]:
    """Name the sets that are there: heads, then brains."""
    for name, channels, truth in (
        ("ixi_t1", [None], False),
        ("lgg_flair", [None], False),
        ("mslub", ["t1", "t2", "flair"], True),
    ):
        folder = shared_data(name, data)
        if folder:
            cases = [case for channel in channels for case in find_cases(folder, channel=channel)]
            yield name, truth, (read_nifti(case.image) for case in cases)
    made = (subject((7, k), modality) for modality in MODALITIES for k in range(PHANTOMS))
    yield "phantoms", True, (as_volume(phantom) for phantom in made)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, None, arguments)


if __name__ == "__main__":
    sys.exit(main())
