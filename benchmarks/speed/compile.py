"""Whether `torch.compile` makes the U-Net faster, and what its warm-up costs.

python -m benchmarks.speed.compile [--presets small paper] [--windows 8] [--freeze] [--rounds 5] [--json FILE]
python -m benchmarks.speed.compile --training --presets small --windows 8    (a training step instead)

Random weights, a batch of whole-slice windows of each preset, in the precision and memory layout of the engine; the
MAE's features are given. Eager and compiled take turns in each round, and the median over rounds of their ratio counts.
`warm_up_seconds` is the first compiled pass, with nothing compiled before; `pays_after_windows` is how many windows
make up for it, null where none do. With `--training` a window is a sample, and both passes of a training step are
timed, of the whole network and its losses. It needs a C++ compiler. A view of another shape compiles anew.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from benchmarks.common import Benchmark, say, table
from benchmarks.speed.timing import load, precision, random_predictor, step_seconds, training_batch
from maediff.config import load_config, override
from maediff.hardware import resolve_device, synchronize
from maediff.inference.cost import window_inputs
from maediff.training.loop import Losses

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("compile.json", "compile_frozen.json"))


def measure_preset(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Compile the U-Net of a preset and time it beside the eager one."""
    predictor = random_predictor(load_config(name), device)
    kind, network = precision(predictor), predictor.reconstruct.network  # type: ignore[attr-defined]
    inputs = window_inputs(network, predictor.config.data.size, predictor.config.partition.window, options.windows)
    with torch.autocast(device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
        features = network.features(*inputs[:2])
    compiled = copy.deepcopy(network)
    compiled.unet = torch.compile(compiled.unet)

    def timed(model: nn.Module) -> float:
        synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
            model(*inputs, features)
        synchronize(device)
        return time.perf_counter() - start

    found = _beside(name, lambda: timed(network), lambda: timed(compiled), options)
    return {"precision": str(kind)} | found


def _beside(
    name: str, eager_run: Callable[[], float], compiled_run: Callable[[], float], options: argparse.Namespace
) -> dict[str, Any]:
    """Time an eager and a compiled pass in turns; both return their seconds."""
    eager_run()
    warm_up = compiled_run()
    say(f"{name}: compiled in {warm_up:.0f} s")
    rounds = [(eager_run(), compiled_run()) for _ in range(options.rounds)]
    eager, fast = (float(np.median(column)) / options.windows for column in zip(*rounds, strict=True))
    ratio = float(np.median([before / after for before, after in rounds]))
    return {
        "warm_up_seconds": warm_up,
        "seconds_per_window_eager": eager,
        "seconds_per_window_compiled": fast,
        "times_as_fast": ratio,
        "pays_after_windows": warm_up / (eager * (1 - 1 / ratio)) if ratio > 1 else None,
        "rounds": rounds,
    }


def measure_training(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Compile the losses of a preset and time forward and backward pass beside the eager ones."""
    config = override(load_config(name), [f"train.batch_size={options.windows}"])
    losses = Losses(config).train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = {key: value.to(device) for key, value in training_batch(config).items()}
    eager, compiled = (partial(step_seconds, model, batch, config) for model in (losses, torch.compile(losses)))
    return _beside(name, lambda: sum(eager()), lambda: sum(compiled()), options)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time, print and return."""
    device = resolve_device(options.device)
    measured = measure_training if options.training else torch.inference_mode()(measure_preset)
    torch._inductor.config.freezing = options.freeze
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": cache}):
        presets = {name: measured(name, options, device) for name in options.presets}
    keys = ["seconds_per_window_eager", "seconds_per_window_compiled", "times_as_fast", "warm_up_seconds"]
    keys.append("pays_after_windows")
    print(table(["preset", *keys], [[name, *(found[key] for key in keys)] for name, found in presets.items()]))
    return {
        "device": str(device),
        "freezing": options.freeze,
        "training": options.training,
        "windows_per_pass": options.windows,
        "presets": presets,
        **load(),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--presets", nargs="+", default=["small", "paper"], help="what to compile (%(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="windows a pass (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of timing; their median counts (%(default)s)")
    parser.add_argument("--training", action="store_true", help="a training step, forward and backward")
    parser.add_argument("--freeze", action="store_true", help="let the compiler fold the weights in (freezing)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
