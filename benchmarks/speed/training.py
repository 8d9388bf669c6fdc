"""How fast training is: images a second, the share of the machine's ceiling, and how long it waits for data.

python -m benchmarks.speed.training [--presets tiny small] [--workers 0 1] [--seconds 25] [--json FILE]

Each preset trains for about the given time on synthetic slices, with the loader in the training process and beside it,
in turns. `waiting` is the share of the time in which the device waited for data; the rest of it was busy.
`share_of_ceiling` is that of the matrix product in the training's precision.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Benchmark, say, table
from benchmarks.speed.timing import load
from maediff.config import Config, load_config, override
from maediff.data.slices import SliceSet
from maediff.hardware import resolve_device
from maediff.training.loop import fit
from maediff.training.pace import Pace

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("training.json",))
WARM_UP_STEPS = 3


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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train, print and return."""
    device = resolve_device(options.device)
    results: dict[str, Any] = {"device": str(device), "runs": {}}
    for preset in options.presets:
        for workers in options.workers:
            config = load_config(preset, [f"train.workers={workers}"])
            short = train(config, WARM_UP_STEPS, device)
            steps = max(5, round(options.seconds * short.images_per_second / config.train.batch_size))
            pace = train(config, steps, device)
            say(f"{preset}, {workers} workers: {steps} steps, {pace}")
            results["runs"][f"{preset}, {workers} workers"] = asdict(pace) | {"steps": steps}
    rows = [[name, *(row[key] for key in asdict(pace))] for name, row in results["runs"].items()]
    print(table(["preset", "images/s", "share waiting", "share of ceiling"], rows))
    return results | load()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--presets", nargs="+", default=("tiny", "small"), help="presets (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1), help="loader processes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=25.0, help="about how long each trains (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
