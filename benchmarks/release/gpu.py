"""What an hour on a GPU is worth most for, in that order, by one command that can be interrupted.

    python -m benchmarks.release.gpu --data DATA --out OUT --work WORK --minutes 9.5    (again, until nothing is left)
    python -m benchmarks.release.gpu --data DATA --out OUT --work WORK --stub --device cpu    (does each job run?)

DATA holds `head_labels`, and the lesion masks if there are any. The trainings that matter come first: the packaged
model from label maps, then its rivals at the same steps. The speed benchmarks follow. Each job is a command of its own
whose output lies in OUT. A finished job is not run again; one that failed is, at the next call. A training that the
time ends is told to save a checkpoint, from which the next call goes on. A finished model is copied to OUT with weights
of half precision, so that it fits where files of 16 MiB come back.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark, lesion_shapes, say, table
from maediff.errors import InputError, MAEDiffError
from maediff.files import read_json, write_json
from maediff.model_folder import load_model_folder, save_model

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md")
RIVALS = ("disyre", "ddpm")
STEPS = 18_000
"""Optimiser steps of a rival: those of the first three of the five stages of the packaged model together."""
SAVING_S = 60.0
"""Seconds that a training gets to save its checkpoint."""
DONE, STOPPED, FAILED, LATER = "done", "stopped", "failed", "not begun"


@dataclass(frozen=True)
class Job:
    """A command that is worth a GPU's time.

    Attributes:
        name: Of its record and its output.
        module: To run, and its arguments.
        settings: Further arguments.
        model: Folder of the model that it trains, or None.
    """

    name: str
    module: tuple[str | Path, ...]
    settings: tuple[str, ...]
    model: Path | None = None


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """List all jobs, the most valuable first."""
    data, work, stub = options.data, options.work, options.stub
    shared = [f"train.workers={options.workers}", *(["train.max_steps=2"] if stub else [])]
    yield Job(
        "heads",
        ("benchmarks.release.packaged_model", "train", "--run", work / "heads", "--data", data),
        _repeated("--override", shared),
        work / "heads" / "fine" / "model",
    )
    shapes = [f"heads.{name}={folder}" for name, folder in lesion_shapes(data).items()]
    for method in RIVALS:
        settings = [f"method={method}", f"train.max_steps={STEPS}", *shapes, *shared]
        command = ("maediff", "train", "-c", "heads", "-i", data / "head_labels", "-o", work / method, "--resume")
        yield Job(f"heads-{method}", command, _repeated("--set", settings), work / method / "model")
    presets = ("--presets", *(("quick",) if stub else ("small", "paper")))
    once = ("--rounds", "1") if stub else ()
    speed = {
        "limits": presets,
        "training": (*presets, "--seconds", "1") if stub else presets,
        "compile": (*presets, *once),
        "inference": (*once, "--slices", "1", "--recommended", "quick") if stub else (),
    }
    for name, given in speed.items():
        yield Job(name, (f"benchmarks.speed.{name}", "--json", options.out / f"{name}.json"), given)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is left, until the time is over."""
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    found = {job.name: job for job in jobs(options)}
    unknown = [name for name in options.job or () if name not in found]
    if unknown:
        raise InputError(f"--job {' '.join(unknown)} is unknown; the jobs are {', '.join(found)}")
    chosen = [found[name] for name in options.job or found]
    states = {}
    for job in chosen:
        record = options.work / f"{job.name}.done.json"
        if record.is_file():
            states[job.name] = read_json(record)
            continue
        left = end - time.monotonic() - SAVING_S
        states[job.name] = run(job, left, options) if left > 0 else {"state": LATER, "seconds": 0.0}
        if states[job.name]["state"] == DONE:
            write_json(record, states[job.name])
    print(table(["job", "state", "s"], [[name, state["state"], state["seconds"]] for name, state in states.items()]))
    failed = [name for name, state in states.items() if state["state"] == FAILED]
    if failed:
        raise MAEDiffError(f"{', '.join(failed)} failed; read the end of {options.out / failed[0]}.log, and run again")
    return states


def run(job: Job, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run a job for so many seconds at most; copy the model that it made.

    Returns:
        ``state`` and ``seconds``.
    """
    start, out = time.monotonic(), options.out
    command = [sys.executable, "-m", *map(str, job.module), "--device", options.device, *job.settings]
    with (out / f"{job.name}.log").open("ab") as log:
        state = _ended(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), seconds)
    if state == DONE and job.model is not None:
        stored = load_model_folder(job.model)
        halves = {name: value.half() for name, value in stored.weights.items()}
        save_model(
            out / job.name, halves, stored.config, None, f"# {job.name}\n\nWeights as `{BENCHMARK.module}` left them.\n"
        )
    taken = time.monotonic() - start
    say(f"{job.name}: {state} after {taken:.0f} s")
    return {"state": state, "seconds": taken}


def _ended(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process, end it if it takes longer, and return how it ended."""
    try:
        return FAILED if process.wait(seconds) else DONE
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(SAVING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return STOPPED


def _repeated(option: str, values: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for value in values for part in (option, value))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/out"), help="results and models (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu/work"), help="trainings (%(default)s)")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all jobs together (%(default)s)")
    parser.add_argument("--workers", type=int, default=14, help="processes that draw slices (%(default)s)")
    parser.add_argument("--job", nargs="+", help="these alone (all)")
    parser.add_argument("--stub", action="store_true", help="tiny sizes: does each job run?")
    parser.set_defaults(device="cuda")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
