"""What the benchmarks of speed share: clocks, synthetic scans, networks with random weights, the machine's ceilings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import ROOT
from maediff.config import Config
from maediff.data.slices import SliceSet
from maediff.hardware import synchronize, use_bf16
from maediff.inference.predictor import Predictor
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.training.stream import sample_stream

_CHILD = """
import json, sys, time
start = time.perf_counter()
from maediff import infer
from maediff.provenance import peak_rss_mib
if __name__ == "__main__":
    model, source, out, device, workers = sys.argv[1:]
    summary = infer(model, source, out, device=device, overwrite=True, workers=int(workers) or None)
    assert summary.failed == 0, summary
    print(json.dumps({"process_seconds": time.perf_counter() - start, "seconds": [c.seconds for c in summary.cases],
                      "peak_rss_mib": peak_rss_mib()}))
"""
BRAIN_MM = (68.0, 86.0, 74.0)
"""Half axes of the ellipsoid that stands for a brain: about 1.8 litres, reaching as far as an adult's in MNI space."""


def load() -> dict[str, Any]:
    """Describe the load of the machine and the number of threads, on which timings depend."""
    return {"load_average_1min": round(os.getloadavg()[0], 2), "threads": torch.get_num_threads()}


def best_seconds(job: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Time a job after one warm-up; the fastest of several runs, which other programs disturb the least."""
    job()
    found = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        job()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)


def copy_bytes(device: torch.device) -> float:
    """Measure bytes read and written a second by a large copy in memory."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device, 5)


def random_predictor(config: Config, device: torch.device) -> Predictor:
    """Make a predictor with random weights: speed does not depend on them."""
    torch.manual_seed(0)
    network = Reconstructor(config)
    network = network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Predictor(config, network, None, "random weights", device)


def network_of(predictor: Predictor) -> Reconstructor:
    """Return the network of a predictor that :func:`random_predictor` made."""
    return cast(Reconstructor, predictor.network)


def precision(predictor: Predictor) -> torch.dtype:
    """Return the precision in which the network computes."""
    fast = use_bf16(predictor.device, predictor.config.infer.precision)
    return torch.bfloat16 if fast else torch.float32


def write_scan(path: Path, shape: tuple[int, int, int] = (182, 218, 182), spacing_mm: float = 1.0) -> Path:
    """Write a synthetic head of an adult's extent: a textured ellipsoid on zero background."""
    axes = [(np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = sum((a / h) ** 2 for a, h in zip((x, y, z), BRAIN_MM, strict=True)) < 1
    tissue = 500 + 120 * np.sin(x / 17) + 90 * np.cos(y / 23) + 60 * np.sin(z / 19)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    image = nib.Nifti1Image(np.where(inside, tissue, 0).astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def copies(folder: Path, count: int, shape: tuple[int, int, int], spacing_mm: float) -> Path:
    """Make a folder of equal scans; their noise depends on their names, so that their maps differ."""
    folder.mkdir(exist_ok=True)
    first = write_scan(folder / "s000000.nii.gz", shape, spacing_mm)
    for number in range(1, count):
        first.with_name(f"s{number:06}.nii.gz").write_bytes(first.read_bytes())
    return folder


def whole_run(model: Path | str, source: Path, out: Path, device: str, workers: int | None = None) -> dict[str, Any]:
    """Run ``maediff infer`` in a separate process, so that start-up and peak memory are those of the run.

    Returns:
        `process_seconds` from import to end, `seconds` of each scan, and `peak_rss_mib` of the process.
    """
    command = [sys.executable, "-c", _CHILD, str(model), str(source), str(out), device, str(workers or 0)]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class ByteCounter(TorchDispatchMode):
    """Count the bytes that operators read and write, as if nothing were kept in caches or fused."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and add its inputs and outputs."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def training_slices(config: Config, count: int = 64) -> SliceSet:
    """Make textured ellipses of the working size."""
    height, width = config.data.size
    rows, columns = np.indices((height, width))
    inside = ((rows - height / 2) / (0.42 * height)) ** 2 + ((columns - width / 2) / (0.42 * width)) ** 2 < 1
    texture = np.random.default_rng(0).normal(0, 0.3, (count, height, width)).cumsum(2) / np.sqrt(width)
    images = np.where(inside, np.clip(texture, -1, 1), -1).astype(np.float16)
    return SliceSet(images, np.repeat(inside[None], count, 0), ("s",) * count, 0, ())


def training_batch(config: Config) -> dict[str, torch.Tensor]:
    """Make a batch of training samples from such slices."""
    stream = sample_stream(training_slices(config), config, config.train.batch_size, augmented=True)
    samples = [stream[index] for index in range(config.train.batch_size)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def step_seconds(
    losses: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]], batch: dict[str, Tensor], config: Config
) -> tuple[float, float]:
    """Take the forward and the backward pass of a training step; return the seconds of each."""
    device = batch["t"].device
    synchronize(device)
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device, config.train.precision)):
        loss, auxiliary = losses(batch)
    synchronize(device)
    middle = time.perf_counter()
    (loss + config.model.mae_loss_weight * auxiliary).backward()
    synchronize(device)
    return middle - start, time.perf_counter() - middle
