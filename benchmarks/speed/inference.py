"""How fast inference is: our engine against the way pDDPM runs its network, and a whole scan from file to file.

python -m benchmarks.speed.inference [--device cpu] [--recommended PRESET] [--json FILE]

The pDDPM way is the harness's own network of its configuration (`paper`) in float32, memory laid out as channels first,
one window after another, and background included. Ours is the engine of `maediff infer`, with the whole slice around
each window and with less (`infer.context`). All are timed in turns on the same few slices of a synthetic 1 mm head, in
every round beside the machine's matrix products, so that clock, heat and other programs disturb both sides of each
ratio alike; ratios are taken within a round, and their median counts.

`speedup_same_network` compares a slice in the same network and windows at the context of `--context`;
`speedup_recommended` with the preset recommended for CPUs, whose `seconds_per_slice` is stated. `seconds_per_volume`
and `peak_rss_mib` are its, from a separate process that does what `maediff infer` does on a 182 x 218 x 182 scan of
1 mm, native space in to native space out. `share_of_ceiling` is the share of the bf16 (or fp32) matrix product that the
paper network's forward pass reaches, `operators` what it spends its time on. On a GPU `seconds_per_volume_warm` is that
of the whole scan by each engine, in a process that is warm.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Benchmark, say, table
from benchmarks.speed.timing import load, network_of, precision, random_predictor, whole_run, write_scan
from maediff.config import load_config, override
from maediff.hardware import matmul_flops, resolve_device, synchronize
from maediff.inference.cost import time_batch, window_flops, window_inputs
from maediff.inference.load import load_model
from maediff.inference.predictor import Predictor
from maediff.methods.maediff.memory import choose_batch, window_bytes
from maediff.methods.maediff.partition import window_grid
from maediff.model_folder import save_model

BENCHMARK = Benchmark(__file__, __doc__, page="docs/speed.md", results=("inference.json",))
Row = dict[str, float]
SMALL = (46, 55, 23)
CONTEXTS = ("slice", "brain", "24")


@torch.inference_mode()
def one_by_one(predictor: Predictor) -> float:
    """Time one window the pDDPM way, seconds: float32, channels first, alone in its batch."""
    config, device = predictor.config, predictor.device
    network = network_of(predictor)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    inputs = window_inputs(network, config.data.size, config.partition.window, 1)
    synchronize(device)
    start = time.perf_counter()
    network(*inputs)
    synchronize(device)
    seconds = time.perf_counter() - start
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return seconds


@dataclass(frozen=True)
class Sample:
    """A few slices of a scan on the working grid of a preset: images and brain (S, H, W), and slices of the scan."""

    images: Tensor
    brain: Tensor
    of: int

    @classmethod
    def draw(cls, predictor: Predictor, scan: Path, count: int) -> Sample:
        """Take slices from all heights of the head."""
        prepared = predictor.prepare(scan).prepared
        total = len(prepared.slices)
        picked = (np.arange(count) + 0.5) * total // count
        images, brain = (torch.from_numpy(stack[picked.astype(int)]) for stack in (prepared.slices, prepared.mask))
        return cls(images, brain, total)


def engine_seconds(predictor: Predictor, sample: Sample) -> float:
    """Time our engine on the sample, seconds a slice."""
    synchronize(predictor.device)
    start = time.perf_counter()
    predictor.reconstruct(sample.images, sample.brain, (0,))
    synchronize(predictor.device)
    return (time.perf_counter() - start) / len(sample.images)


def pass_share(predictor: Predictor, repeats: int = 2) -> float:
    """Measure the share of the matrix product that a batch of whole-slice windows reaches, one beside the other."""
    config, network = predictor.config, network_of(predictor)
    kind = precision(predictor)
    bf16 = kind == torch.bfloat16
    shape, window = config.data.size, config.partition.window
    size = min(2, choose_batch(window_bytes(config, shape, bf16=bf16), predictor.device))
    inputs = window_inputs(network, shape, window, size)
    speeds, tops = [], []
    for _ in range(repeats):
        tops.append(matmul_flops(predictor.device, kind))
        speeds.append(window_flops(network, shape, window) / time_batch(network, inputs, bf16=bf16))
    return float(np.median(speeds) / np.median(tops))


@torch.inference_mode()
def operators(predictor: Predictor) -> dict[str, float]:
    """Return which operators a forward pass spends its time in: their shares, the largest first."""
    config, network, device = predictor.config, network_of(predictor), predictor.device
    inputs = window_inputs(network, config.data.size, config.partition.window, 2)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision(predictor) == torch.bfloat16):
        network(*inputs)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=kinds) as found:
            network(*inputs)
            synchronize(device)
    name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: float(getattr(event, name)) for event in found.key_averages()}
    total = sum(times.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:8]
    return {key: value / total for key, value in largest}


def rounds(options: argparse.Namespace, predictors: dict[str, Predictor], samples: dict[str, Sample]) -> list[Row]:
    """Time everything in turns, after a round that warms up."""
    paper = next(iter(predictors.values()))
    rows: list[Row] = []
    for index in range(options.rounds + 1):
        row: Row = {"pDDPM way": one_by_one(paper) * windows_a_slice(paper)}
        row |= {name: engine_seconds(predictor, samples[name]) for name, predictor in predictors.items()}
        row["share of ceiling"] = pass_share(paper)
        say(f"round {index}: " + ", ".join(f"{name} {value:.3f}" for name, value in row.items()))
        rows.append(row)
    return rows[1:]


def windows_a_slice(predictor: Predictor) -> int:
    """Count the windows of a slice, background included."""
    config = predictor.config
    return len(window_grid(config.data.size, config.partition.window, config.partition.stride))


def median(rows: Sequence[Row], name: str, over: str | None = None) -> float:
    """Take the median over rounds of a time, or of how much longer `over` takes."""
    return float(np.median([row[over] / row[name] if over else row[name] for row in rows]))


def warm_volume(predictor: Predictor, scan: Path) -> float:
    """Time a whole scan in memory, native space in to native space out, after one that warms up."""
    return [predictor.predict(scan).seconds for _ in range(2)][1]


def bf16_difference(scan: Path, device: str) -> dict[str, float]:
    """Compare the maps of the packaged model in bf16 and in float32: mean and largest difference, working units."""
    maps = [
        load_model("phantom", device, (f"infer.precision={precision}",)).predict(scan) for precision in ("bf16", "fp32")
    ]
    gap = np.abs(maps[0].anomaly - maps[1].anomaly)[maps[0].brain_mask]
    return {
        "mean": float(gap.mean()),
        "largest": float(gap.max()),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time, print and return."""
    device = resolve_device(options.device)
    paper = random_predictor(load_config("paper"), device)
    predictors = {f"paper, {context}": seeing(paper, context) for context in (*CONTEXTS, options.context)}
    ours = predictors[options.recommended] = random_predictor(load_config(options.recommended), device)
    warm: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        difference = bf16_difference(write_scan(Path(folder) / "small.nii.gz", SMALL, 4.0), options.device)
        scan = write_scan(Path(folder) / "scan.nii.gz")
        samples = {name: Sample.draw(predictor, scan, options.slices) for name, predictor in predictors.items()}
        rows = rounds(options, predictors, samples)
        model = Path(folder) / "model"
        save_model(model, ours.network.state_dict(), ours.config, None, "# Random weights\n")
        if device.type == "cuda":  # hours on a CPU
            warm = {name: warm_volume(predictor, scan) for name, predictor in predictors.items()}
        volume = whole_run(model, scan, Path(folder) / "out", options.device)
    results = {
        "device": str(device),
        "recommended": options.recommended,
        "context": options.context,
        "precision": str(precision(paper)),
        "slices_of_the_scan": samples[options.recommended].of,
        "seconds_per_slice": median(rows, options.recommended),
        "seconds_per_slice_paper": median(rows, f"paper, {options.context}"),
        "seconds_per_slice_pddpm_way": median(rows, "pDDPM way"),
        "speedup_same_network": median(rows, f"paper, {options.context}", "pDDPM way"),
        "speedup_recommended": median(rows, options.recommended, "pDDPM way"),
        "share_of_ceiling": median(rows, "share of ceiling"),
        "difference_of_bf16_mean": difference["mean"],
        "difference_of_bf16_largest": difference["largest"],
        "seconds_per_volume": volume["seconds"][0],
        "process_seconds": volume["process_seconds"],
        "peak_rss_mib": volume["peak_rss_mib"],
        **load(),
    }
    results["speedup"] = {name: median(rows, name, "pDDPM way") for name in predictors}
    results["operators"] = operators(paper)
    results["seconds_per_volume_warm"] = warm
    results["rounds"] = rows
    print(
        table(["measure", "value"], [[key, value] for key, value in results.items() if isinstance(value, (str, float))])
    )
    print(table(["engine", "times as fast as the pDDPM way"], list(results["speedup"].items())))
    print(table(["operator", "share of the paper network's time"], list(results["operators"].items())))
    return results


def seeing(predictor: Predictor, context: str) -> Predictor:
    """Share a network, with another context around its windows."""
    return replace(predictor, config=override(predictor.config, [f"infer.context={context}"]))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--recommended", default="small", help="preset recommended for this device (%(default)s)")
    parser.add_argument("--context", default="16", help="infer.context of speedup_same_network (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of timing; their median counts (%(default)s)")
    parser.add_argument("--slices", type=int, default=2, help="slices to time the engines on (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return BENCHMARK.run(measure, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
