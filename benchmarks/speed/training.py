"""How fast training is: images a second, the share of the machine's ceiling, and how long it waits for data.

python -m benchmarks.speed.training [--presets tiny small] [--workers 0 1] [--seconds 25] [--json FILE]
python -m benchmarks.speed.training --profile --presets tiny --workers 0    (where the time goes)

Each preset trains for about the given time on synthetic slices, with the loader in the training process and beside it,
in turns. `waiting` is the share of the time in which the device waited for data; the rest of it was busy.
`share_of_ceiling` is that of the matrix product in the training's precision.

With `--profile` the training loop itself is profiled: seconds of each stage, the share of the ceiling that the forward
and the backward pass reach, and the operators that take most of a step.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Benchmark, say, table
from benchmarks.quality.table.cells import training_gflop
from benchmarks.speed.timing import load
from maediff.config import Config, load_config, override
from maediff.data.slices import SliceSet
from maediff.hardware import matmul_flops, resolve_device, use_bf16
from maediff.training.loop import Losses, fit
from maediff.training.pace import Pace
from maediff.training.stream import sample_stream

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("training.json",))
WARM_UP_STEPS = 3
STAGES = {
    "backward": ("accelerator.py", "backward"),
    "gradient clipping": ("accelerator.py", "clip_grad_norm_"),
    "optimiser": ("optimizer.py", "step"),
    "averaged weights": ("loop.py", "_average"),
    "validation": ("loop.py", "_validate"),
    "checkpoint": ("loop.py", "_save"),
    "log": ("losslog.py", "write"),
}
"""Function of each stage of the training loop, by its file; the forward pass is what is left of a step."""
IN_STEP = ("backward", "gradient clipping", "optimiser", "averaged weights")
OPERATORS = 12


def slices(config: Config, count: int = 64) -> SliceSet:
    """Make textured ellipses of the working size."""
    height, width = config.data.size
    rows, columns = np.indices((height, width))
    inside = ((rows - height / 2) / (0.42 * height)) ** 2 + ((columns - width / 2) / (0.42 * width)) ** 2 < 1
    texture = np.random.default_rng(0).normal(0, 0.3, (count, height, width)).cumsum(2) / np.sqrt(width)
    images = np.where(inside, np.clip(texture, -1, 1), -1).astype(np.float16)
    return SliceSet(images, np.repeat(inside[None], count, 0), ("s",) * count, 0, ())


def train(config: Config, steps: int, device: torch.device) -> Pace:
    """Train for a number of steps, with one validation at the end."""
    settings = [f"train.max_steps={steps}", f"train.val_every={steps}", f"train.checkpoint_every={steps}"]
    config = override(config, [*settings, f"train.warmup_steps={min(steps, 2)}"])
    found = slices(config)
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
    seconds["forward"] = spent[("loop.py", "_step")] - sum(seconds[stage] for stage in IN_STEP)
    forward, whole = _forward_gflop(config), training_gflop(config)
    bf16 = use_bf16(device, config.train.precision)
    top = matmul_flops(device, torch.bfloat16 if bf16 else torch.float32) / 1e9
    images = steps * config.train.batch_size
    ceiling = {
        "forward": images * forward / seconds["forward"] / top,
        "backward": images * (whole - forward) / seconds["backward"] / top,
    }
    return {"seconds": seconds, "share_of_ceiling": ceiling, "operators": _operators(config, device), "steps": steps}


def _cumulative(stats: pstats.Stats) -> dict[tuple[str, str], float]:
    """Sum the cumulative seconds of functions by file name and name."""
    found: dict[tuple[str, str], float] = {}
    for (path, _, name), (_, _, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        key = (Path(path).name, name)
        found[key] = max(found.get(key, 0.0), cumulative)  # an optimiser's step calls another step
    return found


def _batch(config: Config) -> dict[str, torch.Tensor]:
    stream = sample_stream(slices(config), config, config.train.batch_size, augmented=True)
    samples = [stream[index] for index in range(config.train.batch_size)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _forward_gflop(config: Config) -> float:
    """Count the operations of an image's forward pass, 1e9."""
    losses, batch = Losses(config).train(), _batch(config)
    with FlopCounterMode(display=False) as counter:
        losses(batch)
    return float(counter.get_total_flops() / len(batch["t"]) / 1e9)


def _operators(config: Config, device: torch.device) -> dict[str, float]:
    """Return the operators that take most of a training step's forward and backward pass, ms."""
    losses = Losses(config).train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = {name: value.to(device) for name, value in _batch(config).items()}
    bf16 = use_bf16(device, config.train.precision)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, auxiliary = losses(batch)
        (loss + config.model.mae_loss_weight * auxiliary).backward()

    step()  # the first one warms up
    with torch.profiler.profile() as recorded:
        step()
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return {row.key: row.self_cpu_time_total / 1e3 for row in rows[:OPERATORS]}


def _print(name: str, found: dict[str, Any]) -> None:
    seconds, whole = found["seconds"], sum(found["seconds"].values())
    print(f"\n{name}: {found['steps']} steps")
    rows = [
        [stage, value, value / whole, found["share_of_ceiling"].get(stage)]
        for stage, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    print(table(["stage", "seconds", "share", "share of ceiling"], rows))
    print(table(["operator", "ms per step"], [list(item) for item in found["operators"].items()]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train, print and return."""
    device = resolve_device(options.device)
    results: dict[str, Any] = {"device": str(device), "runs": {}}
    for preset in options.presets:
        for workers in options.workers:
            config = load_config(preset, [f"train.workers={workers}"])
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--presets", nargs="+", default=("tiny", "small"), help="presets (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1), help="loader processes (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="show where the time of a training goes")
    parser.add_argument("--seconds", type=float, default=25.0, help="about how long each trains (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
