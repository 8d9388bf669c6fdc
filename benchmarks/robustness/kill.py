"""SIGKILL at random moments of train and infer: is anything lost, or half-written under a final name?

python -m benchmarks.robustness.kill [--kills 100] [--seed 0] [--json FILE]

Two jobs, half of the kills each: train the `quick` preset for a few steps on a small synthetic cohort (--resume, with
calibration), and score its test scans with previews. Each runs undisturbed; then it is killed at moments drawn
uniformly over the undisturbed run's processor time (which a busy machine does not stretch) and started again with the
same arguments, a few kills in a row, until it ends. After each kill every file under a final name must be whole; at the
end the files must be those of the undisturbed run, and nothing else may lie there. Each start is a forked process, so
that imports are paid once.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Benchmark, say
from benchmarks.robustness.small_jobs import SMALL, half_written, is_hidden, read, sound_or_refused
from maediff.config import Config, load_config
from maediff.data.synthesis import synthesise
from maediff.files import file_sha256
from maediff.jobs.infer import infer
from maediff.jobs.train import train

BENCHMARK = Benchmark(__file__, __doc__, page="docs/robustness.md", results=("kill.json",))
IN_A_ROW = 5
Job = Callable[[Path], None]


def jobs(place: Path, config: Config, seed: int) -> dict[str, Job]:
    """Make a cohort and name the jobs over it; each goes on from what is there.

    `infer` uses the model of the undisturbed `train`, which runs first.
    """
    table = synthesise(place / "data", subjects=8, seed=seed, spacing_mm=8)
    return {
        "train": lambda folder: _discard(train(config, table, folder, resume=True, device="cpu")),
        "infer": lambda folder: _discard(
            infer(place / "train-calm" / "model", table, folder, split="test", device="cpu", preview=True)
        ),
    }


def kill_at(moment: float, work: Callable[[], None]) -> float | None:
    """Run work in a forked process and kill it at a moment of its processor time, seconds.

    Returns:
        None if it was killed, else the processor time that it took.

    Raises:
        RuntimeError: It ended with another error.
    """
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    used = 0.0
    while process.exitcode is None and used < moment:
        time.sleep(0.005)
        used = _processor_seconds(process.pid) or used
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    if process.exitcode:
        raise RuntimeError(f"the job ended with exit code {process.exitcode}")
    return used


@dataclass
class Comparison:
    """Files of a killed job against those of an undisturbed one.

    Attributes:
        identical: How many have the same SHA-256.
        timeless: Names of those that are equal but for times and how the run came to its end.
        different: What differs, or is in one of them only (hidden files too).
    """

    identical: int = 0
    timeless: set[str] = field(default_factory=set)
    different: list[str] = field(default_factory=list)

    def add(self, calm: Path, killed: Path) -> None:
        """Compare all files of two folders."""
        names = [{str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (calm, killed)]
        self.different += [f"{killed.name}/{name}: in one run only" for name in sorted(names[0] ^ names[1])]
        for name in sorted(names[0] & names[1]):
            if file_sha256(calm / name) == file_sha256(killed / name):
                self.identical += 1
            elif _may_hold_times(name) and read(calm / name) == read(killed / name):
                self.timeless.add(name)
            else:
                self.different.append(f"{killed.name}/{name}: differs")


def measure(name: str, job: Job, place: Path, kills: int, rng: np.random.Generator) -> dict[str, Any]:
    """Kill a job until enough kills were made.

    Returns:
        Counts, and the findings, which should be empty.
    """
    calm, again = place / f"{name}-calm", place / f"{name}-again"
    job(calm)  # in this process, so that the forked ones find everything imported
    span = kill_at(math.inf, lambda: job(again)) or 0.0
    found = Comparison()
    found.add(calm, again)  # two undisturbed runs: what differs here is no kill's doing
    done, episodes, refused, hidden = 0, 0, 0, 0
    torn: list[str] = []
    present: list[int] = []
    while done < kills:
        folder = place / f"{name}-{episodes}"
        for _ in range(min(IN_A_ROW, kills - done)):
            if kill_at(float(rng.uniform(0, span)), lambda folder=folder: job(folder)) is not None:  # type: ignore[misc]
                break
            done += 1
            torn += half_written(folder)
            refused += not sound_or_refused(folder / "model")
            files = [path for path in folder.rglob("*") if path.is_file()]
            hidden += sum(is_hidden(path, folder) and path.suffix != ".lock" for path in files)
            present.append(sum(not is_hidden(path, folder) for path in files))
        kill_at(math.inf, lambda folder=folder: job(folder))  # type: ignore[misc]
        found.add(calm, folder)
        episodes += 1
        say(f"{name}: {done} kills in {episodes} jobs: {len(torn)} half-written, {len(found.different)} different")
    return {
        "kills": done,
        "jobs": episodes,
        "processor_seconds_undisturbed": round(span, 2),
        "files_undisturbed": sum(path.is_file() for path in calm.rglob("*")),
        "final_files_present_at_kills": sorted(present),
        "hidden_files_left_by_kills": hidden,
        "half_written": torn,
        "model_folders_refused_after_a_kill": refused,
        "identical_at_the_end": found.identical,
        "equal_but_for_times": sorted(found.timeless),
        "different_at_the_end": found.different,
    }


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Kill both jobs, half of the times each."""
    torch.set_num_threads(1)  # the jobs fork
    kills, seed = options.kills, options.seed
    rng = np.random.default_rng(seed)
    shares = {"train": kills - kills // 2, "infer": kills // 2}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = jobs(place, load_config("quick", SMALL), seed)
        parts = {name: measure(name, job, place, shares[name], rng) for name, job in made.items()}
    return {"kills": sum(part["kills"] for part in parts.values()), "seed": seed, **parts}


def _discard(_: object) -> None:
    """Forget what a job returns."""


def _processor_seconds(pid: int | None) -> float | None:
    """Return the computing time of a process; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _may_hold_times(name: str) -> bool:
    return name.endswith((".json", ".csv", ".tsv", ".pt"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--kills", type=int, default=100, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the cohort and of the moments (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure_all, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
