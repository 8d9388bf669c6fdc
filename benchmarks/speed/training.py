"""How fast training is: images a second, the share of the machine's ceiling, and how long it waits for data.

python -m benchmarks.speed.training [--presets tiny small] [--workers 0 1] [--seconds 25] [--json FILE]
python -m benchmarks.speed.training --profile --presets tiny --workers 0    (where the time goes)
python -m benchmarks.speed.training --against CHECKOUT --set model.mirror=false    (beside an earlier commit)

Each preset trains for about the given time on synthetic slices, with the loader in the training process and beside it,
in turns. `waiting` is the share of the time in which the device waited for data; the rest of it was busy.
`share_of_ceiling` is that of the matrix product in the training's precision.

With `--against`, another checkout of this repository trains the same presets in turns with this one, and `ratio` is how
many times as many images a second this one trains on. Such a checkout is made by `git worktree add CHECKOUT COMMIT; ln
-s ../configs CHECKOUT/maediff`. `--set` gives settings to this one alone, such as those that bring a preset back to
what it was then.

With `--profile` the training loop itself is profiled: seconds of each stage, and for one thread with its part of a
batch the share of the ceiling that the forward and the backward pass reach, and the operators that take most of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import os
import pstats
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import ROOT, Benchmark, say, table
from benchmarks.quality.table.cells import training_gflop
from benchmarks.speed.timing import load, step_seconds, training_batch, training_slices
from maediff.config import Config, load_config, override
from maediff.cores import one_thread
from maediff.files import read_json
from maediff.hardware import matmul_flops, resolve_device, use_bf16
from maediff.training.loop import Losses, fit
from maediff.training.pace import Pace
from maediff.training.shares import share_count

BENCHMARK = Benchmark(
    __file__,
    __doc__,
    page="docs/speed.md",
    results=("training.json", "training_profile.json", "training_then.json"),
)
WARM_UP_STEPS = 3
STAGES = {
    "forward and backward": ("loop.py", "_backward"),
    "gradient clipping": ("accelerator.py", "clip_grad_norm_"),
    "optimiser": ("optimizer.py", "step"),
    "averaged weights": ("loop.py", "_average"),
    "validation": ("loop.py", "_validate"),
    "checkpoint": ("loop.py", "_save"),
    "log": ("losslog.py", "write"),
}
"""Function of each stage of the training loop, by its file."""
TIMED = 10
"""Steps over which the two passes of one thread are timed."""
OPERATORS = 12


def train(config: Config, steps: int, device: torch.device) -> Pace:
    """Train for a number of steps, with one validation at the end."""
    settings = [f"train.max_steps={steps}", f"train.val_every={steps}", f"train.checkpoint_every={steps}"]
    config = override(config, [*settings, f"train.warmup_steps={min(steps, 2)}"])
    found = training_slices(config)
    with tempfile.TemporaryDirectory() as folder:
        pace = fit(config, found, found, Path(folder), device=device).pace
    if pace is None:
        raise RuntimeError("a run from its first step has a pace")
    return pace


def profile(config: Config, steps: int, device: torch.device) -> dict[str, Any]:
    """Profile the training loop over a number of steps."""
    profiler = cProfile.Profile()
    profiler.enable()
    pace = train(config, steps, device)
    profiler.disable()
    spent = _cumulative(pstats.Stats(profiler))
    seconds = {stage: spent.get(function, 0.0) for stage, function in STAGES.items()}
    seconds["data"] = pace.waiting * steps * config.train.batch_size / pace.images_per_second
    return {"seconds": seconds, "steps": steps} | _passes(config, device)


def _cumulative(stats: pstats.Stats) -> dict[tuple[str, str], float]:
    """Sum the cumulative seconds of functions by file name and name."""
    found: dict[tuple[str, str], float] = {}
    for (path, _, name), (_, _, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        key = (Path(path).name, name)
        found[key] = max(found.get(key, 0.0), cumulative)  # an optimiser's step calls another step
    return found


def _forward_gflop(config: Config) -> float:
    """Count the operations of an image's forward pass, 1e9."""
    losses, batch = Losses(config).train(), training_batch(config)
    with FlopCounterMode(display=False) as counter:
        losses(batch)
    return float(counter.get_total_flops() / len(batch["t"]) / 1e9)


def _passes(config: Config, device: torch.device) -> dict[str, Any]:
    """Time both passes of one thread with its part of a batch, and list the operators that take most of them, ms."""
    losses = Losses(config).train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    threads = share_count(losses.network, device, config.train.batch_size)
    part = override(config, [f"train.batch_size={max(1, config.train.batch_size // threads)}"])
    batch = {name: value.to(device) for name, value in training_batch(part).items()}
    with one_thread() if threads > 1 else contextlib.nullcontext():
        step_seconds(losses, batch, part)  # the first one warms up
        timed = np.mean([step_seconds(losses, batch, part) for _ in range(TIMED)], axis=0)
        with torch.profiler.profile() as recorded:
            step_seconds(losses, batch, part)
        bf16 = use_bf16(device, config.train.precision)
        top = matmul_flops(device, torch.bfloat16 if bf16 else torch.float32) / 1e9
    forward, whole = _forward_gflop(config), training_gflop(config)
    work = {"forward": forward, "backward": whole - forward}
    seconds = dict(zip(work, timed.tolist(), strict=True))
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return {
        "share_of_ceiling": {name: part.train.batch_size * work[name] / seconds[name] / top for name in work},
        "ms_per_step": {name: 1e3 * value for name, value in seconds.items()},
        "operators": {row.key: row.self_cpu_time_total / 1e3 for row in rows[:OPERATORS]},
    }


def _print(name: str, found: dict[str, Any]) -> None:
    seconds, whole = found["seconds"], sum(found["seconds"].values())
    print(f"\n{name}: {found['steps']} steps")
    rows = [[stage, value, value / whole] for stage, value in sorted(seconds.items(), key=lambda item: -item[1])]
    print(table(["stage", "seconds", "share"], rows))
    passes = found["ms_per_step"].items()
    print(
        table(["one thread", "ms", "share of ceiling"], [[*one, found["share_of_ceiling"][one[0]]] for one in passes])
    )
    print(table(["operator", "ms per step"], [list(item) for item in found["operators"].items()]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train, print and return."""
    if options.against:
        return _compare(options) | load()
    device = resolve_device(options.device)
    results: dict[str, Any] = {"device": str(device), "runs": {}}
    for preset in options.presets:
        for workers in options.workers:
            config = load_config(preset, [f"train.workers={workers}", *options.overrides])
            short = train(config, WARM_UP_STEPS, device)
            steps = max(5, round(options.seconds * short.images_per_second / config.train.batch_size))
            if options.profile:
                found = profile(config, steps, device)
                results["runs"][f"{preset}, {workers} workers"] = found
                _print(f"{preset}, {workers} workers", found)
                continue
            pace = train(config, steps, device)
            say(f"{preset}, {workers} workers: {steps} steps, {pace}")
            results["runs"][f"{preset}, {workers} workers"] = asdict(pace) | {"steps": steps}
    if options.profile:
        return results | load()
    rows = [[name, *(row[key] for key in asdict(pace))] for name, row in results["runs"].items()]
    print(table(["preset", "images/s", "share waiting", "share of ceiling"], rows))
    return results | load()


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train in turns with another checkout; return the images per second of each round and the mean ratios."""
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.rounds):
        for side, root in (("then", options.against), ("now", ROOT)):
            for name, run in _run_in(root, options, options.overrides if side == "now" else ()).items():
                found.setdefault(name, {"then": [], "now": []})[side].append(run["images_per_second"])
    ratios = {
        name: [now / then for now, then in zip(pair["now"], pair["then"], strict=True)] for name, pair in found.items()
    }
    rows = [
        [name, float(np.mean(pair["then"])), float(np.mean(pair["now"])), float(np.mean(ratios[name]))]
        for name, pair in found.items()
    ]
    print(table(["preset", "then, images/s", "now, images/s", "ratio"], rows))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=options.against, capture_output=True, text=True, check=True
    ).stdout.strip()
    return {"against": commit, "overrides": options.overrides, "runs": found, "ratios": ratios}


def _run_in(root: Path, options: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Run this benchmark in a checkout, in a process of its own."""
    module = "benchmarks.speed.training" if (root / "benchmarks" / "speed").is_dir() else "benchmarks.training"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "training.json"
        command = [sys.executable, "-m", module, "--seconds", str(options.seconds), "--device", options.device]
        command += ["--presets", *options.presets, "--workers", *map(str, options.workers), "--json", str(file)]
        command += [part for setting in overrides for part in ("--set", setting)]
        subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=True)
        runs: dict[str, Any] = read_json(file)["results"]["runs"]
    return runs


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--presets", nargs="+", default=("tiny", "small"), help="presets (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1), help="loader processes (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="show where the time of a training goes")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to train in turns with")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each with --against (%(default)s)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="settings")
    parser.add_argument("--seconds", type=float, default=25.0, help="about how long each trains (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
