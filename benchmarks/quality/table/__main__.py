"""Is MAEDiff better, and which part of it? Every method on the same data, budget, post-processing and statistics.

    python -m benchmarks.quality.table             compute the missing cells and print all tables
    python -m benchmarks.quality.table --render    print all tables from the stored cells; compute nothing
    python -m benchmarks.quality.table --data-set lgg_flair --method maediff --seed 1    another training of a method
    python -m benchmarks.quality.table --data-set lgg_flair --method pddpm --work runs/again --results runs/again
                                                   compute one cell again, in another folder

A cell is a JSON file, RESULTS/DATA/METHOD.json, or METHOD.seedN.json for another seed of the training. Cohorts, run
folders and models are stored in --work; an interrupted training continues from its checkpoint. A cell that cannot be
computed here, because its scans or its model are missing, is listed as not computed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, ROOT, AbsentError, Benchmark, save_results, say
from benchmarks.quality.table.cells import Place, compute
from benchmarks.quality.table.render import draw, markdown, write_markdown
from benchmarks.quality.table.rows import DATA_SETS, ROWS
from maediff.errors import GeometryError, InputError

BENCHMARK = Benchmark(__file__, __doc__, page="docs/benchmark.md", results=("table",))
CELLS = RESULTS / "table"
WORK = ROOT / "runs" / "table"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compute the missing cells, then print and write the tables."""
    torch.set_num_threads(options.threads)
    if not options.render:
        _compute(options)
    print(markdown(options.results))
    if options.page:
        write_markdown(options.page, options.results)
        draw(options.page.parent / "images" / "benchmark.svg", options.results)
        say(f"rendered {options.page}")
    return {}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR", help="folder of cohorts and models (%(default)s)"
    )
    parser.add_argument("--results", type=Path, default=CELLS, metavar="DIR", help="folder of cells (%(default)s)")
    parser.add_argument(
        "--data-set", nargs="+", choices=DATA_SETS, default=list(DATA_SETS), help="data sets; all by default"
    )
    parser.add_argument("--method", nargs="+", choices=names, default=names, help="rows; all by default")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the training (%(default)s)")
    parser.add_argument("--again", action="store_true", help="compute stored cells again")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the summary here, all tables beside it")
    parser.add_argument("--render", action="store_true", help="compute nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (%(default)s)")


def _compute(options: argparse.Namespace) -> None:
    place = Place(options.work, options.data, options.results, options.seed)
    for name in options.data_set:
        for row in (row for row in ROWS if row.name in options.method and row.tried_on(name)):
            path = place.cell_of(name, row.name)
            if path.is_file() and not options.again:
                continue
            say(f"{name} {row.name}")
            try:
                found = compute(DATA_SETS[name], row, place)
            except AbsentError as error:
                say(f"  not computed: {error}")
                continue
            except (GeometryError, InputError) as error:
                found = {"refused": str(error).replace(f"{options.data.resolve()}/", "")}
                say(f"  refused: {found['refused']}")
            save_results(path, found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
