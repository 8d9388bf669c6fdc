"""What does a minute of training buy? AUPRC against training time, for settings of a preset.

python -m benchmarks.quality.learning --minutes 2 5 10 20 --json benchmarks/results/learning.json [--picture FILE.png]
python -m benchmarks.quality.learning --steps 400 --variant now: --variant gate:model.gate=true,train.lr=2e-3
                                                                    (equal steps instead of equal time)

Each run is a whole training with its own schedule, from nothing, on T2-like brains of `maediff synth`. Its length is
that of so many minutes at the speed that its first steps had. The brains with lesions are others than those of
`maediff demo`, so that settings chosen here are not chosen on what the demo shows. AUPRC is the mean over brains, for
each kind of lesion and over all. A variant is a name and overrides of the preset; without a name there is the preset
alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import maediff
from benchmarks.common import ROOT, Benchmark, say, table
from maediff.config import Config, load_config, override
from maediff.data.synthesis import synthesise
from maediff.errors import InputError
from maediff.evaluation import Estimate
from maediff.files import read_json, write_json

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("learning.json",))
SUBJECTS, COHORT_SEED = 48, 1017
PROBE_STEPS = 30
"""Steps from which the speed of a setting is measured."""
WORK = ROOT / "runs" / "learning"
ALL = "all"
Run = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """Settings to compare: a name and overrides of the preset."""

    name: str
    overrides: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Variant:
        """Read ``NAME:override,override``; overrides with commas of their own are joined by their brackets.

        Raises:
            InputError: There is no colon, or no name.

        Example:
            >>> Variant.read("early:diffusion.train_timesteps=[30, 60],model.gate=true").overrides
            ('diffusion.train_timesteps=[30, 60]', 'model.gate=true')
        """
        name, colon, rest = text.partition(":")
        if not (name and colon):
            raise InputError(f"--variant {text!r} must be NAME:OVERRIDE,OVERRIDE, or NAME: for the preset as it is")
        found: list[str] = []
        for part in filter(None, rest.split(",")):
            if found and found[-1].count("[") > found[-1].count("]"):
                found[-1] += "," + part
            else:
                found.append(part)
        return cls(name, tuple(found))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score every variant at every length."""
    torch.set_num_threads(options.threads)
    cohort = synthesise(options.work / "cohort", subjects=SUBJECTS, seed=COHORT_SEED, spacing_mm=2.0)
    variants = [Variant.read(text) for text in options.variant or ["preset:"]]
    rows: list[Run] = []
    for variant in variants:
        config = load_config(options.preset, [*variant.overrides, "train.workers=0", f"train.seed={options.seed}"])
        for steps in options.steps or lengths(config, options.minutes, cohort):
            name = f"{variant.name}-{steps}.seed{options.seed}"
            found = run(override(config, [f"train.max_steps={steps}"]), cohort, options.work / name)
            rows.append({"variant": variant.name, "steps": steps} | found)
            said = ", ".join(f"{kind} {auprc.mean:.3f}" for kind, auprc in _auprc(found).items())
            say(f"{name}: {found['seconds']:.0f} s of training, {said}")
    kinds = list(rows[0]["auprc"])
    lines = [
        [*(row[key] for key in ("variant", "steps", "seconds", "cpu_seconds")), *_auprc(row).values()] for row in rows
    ]
    print(table(["variant", "steps", "s", "CPU s", *kinds], lines))
    if options.picture:
        draw(options.picture, rows)
    return {"preset": options.preset, "threads": options.threads, "seed": options.seed, "runs": rows}


def run(config: Config, cohort: Path, folder: Path) -> Run:
    """Train once and score the brains with lesions; what was stored by an earlier call is read.

    Returns:
        ``seconds`` and ``cpu_seconds`` of the training, and ``auprc`` by kind of lesion and over all, each with an
        interval over brains.
    """
    stored = folder / "result.json"
    if stored.is_file():
        return read_json(stored)
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted training has no time that could be told
    start, cpu = time.perf_counter(), time.process_time()
    maediff.train(config, cohort, folder / "run", device="cpu")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    maediff.infer(folder / "run" / "model", cohort, folder / "out", split="test", device="cpu")
    found = maediff.evaluate(folder / "out", cohort, folder / "metrics")
    auprc = {ALL: found["voxel.auprc"]} | {kind: of["voxel.auprc"] for kind, of in found["by_lesion"].items()}
    write_json(stored, {"seconds": seconds, "cpu_seconds": cpu_seconds, "auprc": auprc})
    return read_json(stored)


def lengths(config: Config, minutes: Sequence[float], cohort: Path) -> list[int]:
    """Convert minutes of training into steps, at the speed of two short trainings."""
    steps = (PROBE_STEPS, 3 * PROBE_STEPS)
    seconds = []
    for count in steps:
        start = time.perf_counter()
        settings = [f"train.max_steps={count}", f"train.warmup_steps={min(count, config.train.warmup_steps)}"]
        with tempfile.TemporaryDirectory() as folder:
            maediff.train(override(config, settings), cohort, Path(folder) / "run", device="cpu")
        seconds.append(time.perf_counter() - start)
    a_step = (seconds[1] - seconds[0]) / (steps[1] - steps[0])
    before = seconds[0] - steps[0] * a_step
    return [max(1, round((60 * length - before) / a_step)) for length in minutes]


def draw(path: Path, rows: Sequence[Run]) -> None:
    """Draw mean AUPRC over seconds of training, a line a variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        means = [_auprc(row)[ALL] for row in mine]
        seconds = [row["seconds"] for row in mine]
        (line,) = axes.plot(seconds, [one.mean for one in means], marker="o", label=name)
        axes.fill_between(
            seconds, [m.ci_low for m in means], [m.ci_high for m in means], alpha=0.15, color=line.get_color()
        )
    axes.set(xlabel="training, s", ylabel="AUPRC, mean over brains with a lesion", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def _auprc(found: Run) -> dict[str, Estimate]:
    return {kind: Estimate(**metric) for kind, metric in found["auprc"].items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--preset", default="tiny", help="preset or YAML file (%(default)s)")
    parser.add_argument("--variant", action="append", metavar="NAME:OVERRIDES", help="settings to compare; repeatable")
    parser.add_argument("--minutes", nargs="+", type=float, default=[2.0, 5.0, 10.0, 20.0], help="of training")
    parser.add_argument("--steps", nargs="+", type=int, help="lengths in steps, instead of minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the training (%(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="cohort and models (%(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw AUPRC over time as PNG")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
