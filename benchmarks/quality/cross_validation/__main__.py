"""Does hiding pay? Five folds over 80 glioma patients: every row trained alike, each patient tested once.

    python -m benchmarks.quality.cross_validation --masks DIR    compute what is missing, and print the tables
    python -m benchmarks.quality.cross_validation --masks DIR --row maediff ddpm-lesions --fold 0 --seed 0 1
                                                                 some cells; others may run beside it
    python -m benchmarks.quality.cross_validation --render       print the tables of the stored cells alone
    python -m benchmarks.quality.cross_validation --render --fold 0 1    of some folds, before all are there
    python -m benchmarks.quality.cross_validation --masks DIR --pictures FILE.png --fold 0 --seed 1
                                                                 test patients under each method with a model

A cell is a JSON file, RESULTS/ROW/foldK.json, or foldK.seedN.json for another seed of the training. Models lie in
--work, in a folder for each budget and set of masks; an interrupted training goes on from its checkpoint. Cells of
another budget or other brain masks are refused: give each its own --results. --masks names the folder that
`python -m benchmarks.quality.new_masks` writes, for the stored cells with the weights of an earlier extraction (see
there); without it the brains are those of the data set, which hold scalp.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, ROOT, Benchmark, save_results, say, write_between
from benchmarks.quality.cross_validation.folds import (
    COMPARED,
    FOLDS,
    Protocol,
    data_set,
    fingerprint,
    path_of,
    patients,
)
from benchmarks.quality.cross_validation.pictures import draw
from benchmarks.quality.cross_validation.render import BEGIN, END, markdown
from benchmarks.quality.table.cells import Place, compute
from benchmarks.quality.table.rows import Row
from maediff.data.cases import Case
from maediff.errors import InputError, MAEDiffError
from maediff.files import read_json

BENCHMARK = Benchmark(__file__, __doc__, page="docs/cross-validation.md", results=("cross_validation",))
CELLS = RESULTS / "cross_validation"
WORK = ROOT / "runs" / "cross_validation"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compute what is missing and render."""
    torch.set_num_threads(options.threads)
    if options.pictures:
        _draw(options)
        return {}
    failed = [] if options.render else _compute(options)
    print(markdown(options.results, options.fold))
    if options.page:
        write_between(options.page, BEGIN, END, markdown(options.results))
        say(f"rendered {options.page}")
    if failed:
        raise MAEDiffError(f"{len(failed)} cells could not be computed, the others are stored: {'; '.join(failed)}")
    return {}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    names, folds = [row.name for row in COMPARED], range(FOLDS)
    parser.add_argument("--masks", type=Path, metavar="DIR", help="brain masks instead of those of the data set")
    parser.add_argument("--row", nargs="+", choices=names, default=names, help="methods (all)")
    parser.add_argument("--fold", nargs="+", type=int, choices=folds, default=list(folds), help="folds (all)")
    parser.add_argument("--seed", nargs="+", type=int, default=[0], metavar="N", help="of the training (0)")
    parser.add_argument("--budget", type=float, default=20.0, metavar="TFLOP", help="of a training (%(default)g)")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="models (%(default)s)")
    parser.add_argument("--results", type=Path, default=CELLS, metavar="DIR", help="cells (%(default)s)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write the tables of all folds into this page")
    parser.add_argument("--pictures", type=Path, metavar="FILE", help="draw patients of a fold as PNG, compute nothing")
    parser.add_argument("--render", action="store_true", help="compute nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (%(default)s)")


def _compute(options: argparse.Namespace) -> list[str]:
    """Compute the missing cells; return a sentence for each one that failed."""
    cases, protocol, chosen = _asked(options)
    failed = []
    for seed, fold, row in product(options.seed, options.fold, chosen):
        path = path_of(options.results, row.name, fold, seed)
        if path.is_file():
            check(path, protocol)
            continue
        say(f"fold {fold} {row.name} seed {seed}")
        place = Place(options.work / protocol.name, options.data, options.results, seed)
        try:
            found = compute(data_set(cases, fold, options.budget), row, place)
        except MAEDiffError as error:
            failed.append(f"fold {fold} {row.name} seed {seed}: {error}")
            say(f"  failed: {error}")
            continue
        save_results(path, {"protocol": asdict(protocol)} | found)
    return failed


def _draw(options: argparse.Namespace) -> None:
    """Draw test patients of the first fold and seed asked for."""
    cases, protocol, chosen = _asked(options)
    fold, seed = options.fold[0], options.seed[0]
    place = Place(options.work / protocol.name, options.data, options.results, seed)
    draw(options.pictures, data_set(cases, fold, options.budget), chosen, place, fold)
    say(f"drawn into {options.pictures}; pictures of these scans may not be published")


def _asked(options: argparse.Namespace) -> tuple[list[Case], Protocol, list[Row]]:
    """Return the patients, the protocol and the rows that the options ask for."""
    cases = patients(options.data, options.masks)
    return cases, Protocol(options.budget, fingerprint(cases)), [row for row in COMPARED if row.name in options.row]


def check(path: Path, protocol: Protocol) -> None:
    """Refuse a stored cell of another protocol.

    Raises:
        InputError: Its budget or its masks are others.
    """
    stored, asked = read_json(path)["results"]["protocol"], asdict(protocol)
    if stored != asked:
        raise InputError(
            f"{path} was computed with {stored}, this run asks for {asked}; cells of both cannot be compared: "
            "give the same --budget and --masks, or another folder to --results"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
