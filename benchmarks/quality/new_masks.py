"""Which brain masks do the glioma scans get? New ones for ``lgg_flair``, whose own hold face and scalp.

python -m benchmarks.quality.new_masks --out runs/lgg_masks

Names are those of the old masks. Masks that are there are kept; ``--overwrite`` writes them again. The masks of the
stored cross-validation were made by the weights of an earlier brain extraction, which --weights takes:
``git show a2ee306:maediff/weights/extraction/model.safetensors > FILE``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Benchmark, data_folder, say
from maediff.data.cases import find_cases
from maediff.errors import InputError
from maediff.extraction import extract_brain
from maediff.extraction.brain import load_net
from maediff.volume import read_nifti, write_like

BENCHMARK = Benchmark(__file__, __doc__, page="docs/prepare.md")
HEIGHT_MM = 150.0
"""Height of a stack whose slice distance is lost, as the extraction assumed when the cross-validation began; it tries
several now. Other masks would make all stored cells void."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Extract the brain of every scan."""
    rows: dict[str, Any] = {}
    net = load_net(options.weights) if options.weights else None
    for case in find_cases(data_folder("lgg_flair", options.data)):
        target = options.out / Path(str(case.mask)).name
        if target.is_file() and not options.overwrite:
            continue
        volume = read_nifti(case.image)
        try:
            found = extract_brain(volume, net, options.heights)
        except InputError as error:
            rows[case.id] = {"error": str(error)}
        else:
            write_like(target, found.mask, volume, np.uint8)
            rows[case.id] = {"voxels": int(np.count_nonzero(found.mask)), "certainty": found.certainty}
        say(f"{case.id}: {rows[case.id]}")
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new masks")
    parser.add_argument("--heights", type=float, nargs="+", default=[HEIGHT_MM], metavar="MM", help="of stacks, tried")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="of another brain extraction than the packaged one"
    )
    parser.add_argument("--overwrite", action="store_true", help="write again what is there")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
