"""Fuzz the four borders: NIfTI, manifest, configuration, model folder. Does anything but MAEDiffError come out?

python -m benchmarks.robustness.fuzz [--inputs 12000] [--seed 0] [--border NAME] [--only NUMBER] [--json FILE]

Every input is made from a valid one by a few mutations drawn from (seed, border, number), and given to the code that
reads it, far enough to be used: a scan is read and brought to the working grid, a table becomes cases, a configuration
becomes a network of no memory (torch's meta device) that takes a slice, a model folder, whose checksums are made to
fit, becomes a predictor. Warnings count as errors; an input may take 60 s and 2 GiB; a message 4,000 characters.
`--border NAME --only NUMBER` makes one input again, with its traceback.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import Benchmark, say
from benchmarks.robustness.mutations import BORDERS, Border
from maediff.errors import MAEDiffError

BENCHMARK = Benchmark(__file__, __doc__, page="docs/robustness.md", results=("fuzz.json",))
SECONDS = 60  # a busy machine may take its time
MEMORY_BYTES = 2 * 2**30
MAX_MESSAGE = 4000


class HangError(BaseException):
    """An input took too long; no handler of the code under test may catch it."""


class Finding(NamedTuple):
    """An input that did something else than to be read or refused."""

    number: int
    kind: str
    message: str
    where: str


def try_one(border: Border, seed: int, number: int, folder: Path) -> tuple[str, Finding | None]:
    """Make an input and feed it.

    Returns:
        What came out: "accepted" or the name of the error's class; and a finding if that is not one of ours.
    """
    rng = np.random.default_rng([seed, sum(border.name.encode()), number])
    source = border.make(rng, folder)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", module="nibabel")  # which tells the user of odd extensions
            border.feed(source)
    except MAEDiffError as error:
        return type(error).__name__, _judged(number, error)
    except (Exception, HangError) as error:
        return type(error).__name__, _finding(number, type(error).__name__, error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "accepted", None


def fuzz(border: Border, seed: int, numbers: range, folder: Path) -> dict[str, Any]:
    """Feed many inputs to one border.

    Returns:
        Counts by outcome, findings (which should be none), time and growth of memory.
    """
    outcomes: Counter[str] = Counter()
    findings: list[Finding] = []
    slowest = (0.0, 0)
    before, start = _peak_mib(), time.perf_counter()
    for number in numbers:
        began = time.perf_counter()
        outcome, finding = try_one(border, seed, number, folder)
        slowest = max(slowest, (time.perf_counter() - began, number))
        outcomes[outcome] += 1
        if finding:
            findings.append(finding)
            say(f"{border.name} {number}: {finding.kind}: {finding.message[:200]} ({finding.where})")
        if (number + 1) % 1000 == 0:
            say(f"{border.name}: {number + 1} inputs, {len(findings)} findings")
    return {
        "inputs": len(numbers),
        "outcomes": dict(outcomes.most_common()),
        "findings": [finding._asdict() for finding in findings],
        "seconds": round(time.perf_counter() - start, 1),
        "slowest_seconds": round(slowest[0], 2),
        "slowest_input": slowest[1],
        "peak_rss_growth_mib": round(_peak_mib() - before, 1),
    }


def measure(inputs: int, seed: int, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Fuzz the borders, each with its share of the inputs."""
    guard()
    total = sum(BORDERS[name].share for name in names)
    parts = {}
    for name in names:
        border = BORDERS[name]
        (folder / name).mkdir()
        border.prepare(folder / name)
        parts[name] = fuzz(border, seed, range(round(inputs * border.share / total)), folder / name)
    count = sum(part["inputs"] for part in parts.values())
    found = sum(len(part["findings"]) for part in parts.values())
    say(f"{count} inputs, {found} findings")
    return {"inputs": count, "findings": found, "seed": seed, "borders": parts}


def guard() -> None:
    """Arm the alarm and limit the memory of this process; the log of refused inputs is not shown."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _hang)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def show(border: Border, seed: int, number: int, folder: Path) -> dict[str, Any]:
    """Feed one input and tell all."""
    border.prepare(folder)
    source = border.make(np.random.default_rng([seed, sum(border.name.encode()), number]), folder)
    try:
        border.feed(source)
    except Exception:
        traceback.print_exc()
    return {"input": str(source)}


def _judged(number: int, error: MAEDiffError) -> Finding | None:
    """Find fault with an error of ours: memory that was asked for and not there, or a message without end."""
    if isinstance(error.__cause__, MemoryError):
        return _finding(number, "memory", error.__cause__)
    return _finding(number, "message", error) if len(str(error)) > MAX_MESSAGE else None


def _finding(number: int, kind: str, error: BaseException) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "maediff" in frame.filename] or frames
    return Finding(number, kind, str(error)[:500], f"{Path(ours[-1].filename).name}:{ours[-1].lineno}")


def _hang(*_: object) -> None:
    raise HangError(f"more than {SECONDS} s")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--inputs", type=int, default=12_000, help="how many over all borders (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (%(default)s)")
    parser.add_argument("--border", choices=sorted(BORDERS), help="this border alone")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this input alone, with its traceback")


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Fuzz what the command line asks for."""
    names = [options.border] if options.border else list(BORDERS)
    with tempfile.TemporaryDirectory() as place:
        if options.only is None:
            return measure(options.inputs, options.seed, names, Path(place))
        found = show(BORDERS[names[0]], options.seed, options.only, Path(place))
    print(json.dumps(found))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure_all, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
