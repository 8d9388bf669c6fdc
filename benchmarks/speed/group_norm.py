"""How much faster a training step is with our group normalisation than with PyTorch's.

python -m benchmarks.speed.group_norm [--presets tiny small] [--rounds 9] [--json FILE]

The same network takes a step, forward and backward, with either of them, in turns; the median over rounds of the ratio
counts. `loss` is that of both before any step. Data, optimiser and logging are not part of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import Benchmark, table
from benchmarks.speed.timing import load, sample_batch
from maediff.config import load_config
from maediff.hardware import resolve_device, use_bf16
from maediff.methods.group_norm import GroupNorm
from maediff.training.loop import Losses

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("group_norm.json",))


def measure_preset(name: str, rounds: int) -> dict[str, Any]:
    """Time training steps of a preset with both kinds of normalisation."""
    config, device = load_config(name), resolve_device("cpu")
    batch, bf16 = sample_batch(config), use_bf16(device, config.train.precision)
    losses = Losses(config).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    norms = [module for module in losses.modules() if isinstance(module, nn.GroupNorm)]

    def step(kind: type[nn.GroupNorm]) -> tuple[float, float]:
        for module in norms:
            module.__class__ = kind
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, auxiliary = losses(batch)
        (loss + config.model.mae_loss_weight * auxiliary).backward()
        return time.perf_counter() - start, float(loss.detach())

    first = {kind.__module__: step(kind)[1] for kind in (nn.GroupNorm, GroupNorm)}  # warms up
    pairs = np.array([[step(kind)[0] for kind in (nn.GroupNorm, GroupNorm)] for _ in range(rounds)])
    theirs, ours = np.median(pairs, axis=0)
    return {
        "pytorch_ms": 1e3 * theirs,
        "ours_ms": 1e3 * ours,
        "ratio": float(np.median(pairs[:, 0] / pairs[:, 1])),
        "loss": list(first.values()),
        "bf16": bf16,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure each preset, print and return."""
    found = {name: measure_preset(name, options.rounds) for name in options.presets}
    rows = [[name, row["pytorch_ms"], row["ours_ms"], row["ratio"]] for name, row in found.items()]
    print(table(["preset", "PyTorch's, ms per step", "ours", "ratio"], rows))
    return {"presets": found, "rounds": options.rounds} | load()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    presets = ("tiny", "small", "heads", "benchmarks/quality/lgg_flair.yaml")
    parser.add_argument("--presets", nargs="+", default=presets, help="presets (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="steps with each (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
