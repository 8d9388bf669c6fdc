"""What this machine can do at most, and what a window pass of each preset asks of it.

python -m benchmarks.speed.limits [--device cpu] [--json FILE]

Ceilings are measured: a large matrix product in float32 and bfloat16, and a copy in memory. Operations are counted with
PyTorch's counter, bytes as what every operator reads and writes in float32 with nothing fused or cached.
A window pass cannot take less than the larger of operations / product and (fused) bytes / copy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import Benchmark, table
from benchmarks.speed.timing import ByteCounter, copy_bytes, load
from maediff.config import load_config
from maediff.hardware import matmul_flops, resolve_device
from maediff.inference.cost import window_flops, window_inputs
from maediff.methods.maediff.reconstructor import Reconstructor

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("limits.json",))
PRESETS = ("small", "base", "paper")


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure the machine's ceilings."""
    return {
        "matmul_fp32_gflops": matmul_flops(device, torch.float32) / 1e9,
        "matmul_bf16_gflops": matmul_flops(device, torch.bfloat16) / 1e9,
        "copy_gb_per_second": copy_bytes(device) / 1e9,
    }


@torch.inference_mode()
def window_pass(preset: str) -> dict[str, float]:
    """Count what one window pass of a preset takes."""
    config = load_config(preset)
    network = Reconstructor(config).eval()
    window = config.partition.window
    with ByteCounter() as counter:
        network(*window_inputs(network, config.data.size, window, 1))
    return {
        "gflop": window_flops(network, config.data.size, window) / 1e9,
        "gb_unfused_fp32": counter.total / 1e9,
        "parameters_million": sum(p.numel() for p in network.parameters()) / 1e6,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Print and return ceilings and counts."""
    device = resolve_device(options.device)
    top = ceilings(device)
    passes = {preset: window_pass(preset) for preset in options.presets}
    rows = [
        [name, *found.values(), found["gflop"] / top["matmul_fp32_gflops"], found["gflop"] / top["matmul_bf16_gflops"]]
        for name, found in passes.items()
    ]
    print(table(["ceiling", "value"], list(top.items())), end="\n\n")
    columns = ["preset", "GFLOP", "GB unfused", "parameters, 1e6", "least s in fp32", "least s in bf16"]
    print(table(columns, rows))
    return {"device": str(device), "ceilings": top, "window_pass": passes, **load()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="presets to count (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
