"""Estimate the cost of a run from one scan and one batch: windows, floating-point operations, memory and time."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from maediff.config import UNTRAINED
from maediff.errors import MAEDiffError
from maediff.hardware import synchronize, usual_defaults
from maediff.inference.cohort import PlannedCase
from maediff.inference.predictor import LoadedScan, Predictor
from maediff.methods.base import Method
from maediff.methods.maediff.layout import Layout
from maediff.methods.maediff.sliding import SlidingReconstructor
from maediff.provenance import peak_rss_mib

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """Expected cost of a run, from its first scan.

    Attributes:
        scans: Scans to compute; finished ones cost nothing.
        windows: Forward passes of a window, all scans together.
        gflop: Floating-point operations of the network, 1e9.
        batch: Windows per forward pass.
        memory_mib: Resident memory of this process after preparing one scan and computing one batch; on a GPU, the
            memory of the GPU.
        seconds: Expected time on this machine as it is now; writing overlaps with computing.
    """

    scans: int
    windows: int
    gflop: float
    batch: int
    memory_mib: float | None
    seconds: float


@usual_defaults()
def estimate_cost(predictor: Predictor, planned: Sequence[PlannedCase]) -> Cost | None:
    """Prepare the first usable scan of the plan, time one batch, and extrapolate.

    Args:
        predictor: The model on its device.
        planned: What :func:`~maediff.inference.cohort.plan_cases` lists.

    Returns:
        None for methods whose cost is not estimated.

    Raises:
        MAEDiffError: No scan can be used; the error is that of the last one.
    """
    todo = [item for item in planned if item.action == "infer"]
    if predictor.config.method in UNTRAINED:
        return None
    engine = predictor.reconstruct
    if not isinstance(engine, SlidingReconstructor):
        return None
    if not todo:
        return Cost(0, 0, 0.0, 0, peak_rss_mib(), 0.0)
    scan = _first_usable(predictor, todo)
    masks = [cut.mask for cut in (scan.prepared, *scan.turned)]
    side = predictor.config.partition.window
    network = predictor.network

    # Count the windows of the first scan, in all orientations.
    layouts = [engine.layout(torch.from_numpy(mask)) for mask in masks]
    layout = layouts[0]
    shape = engine.padded_shape((masks[0].shape[1], masks[0].shape[2]))
    batch = engine.windows_per_pass(shape)
    windows = sum(len(one) * one.steps for one in layouts)

    # Time a batch of whole slices; the views of this scan take a known share of its operations.
    whole = window_flops(network, shape, side)
    flops = window_flops(network, shape, side, seen(layout, shape))
    inputs = window_inputs(network, shape, side, min(batch, max(1, windows)))
    seconds = time_batch(network, inputs, bf16=engine.bf16) * flops / whole

    gpu = predictor.device.type == "cuda"
    count = len(todo)
    return Cost(
        scans=count,
        windows=count * windows,
        gflop=count * windows * flops / 1e9,
        batch=batch,
        memory_mib=torch.cuda.max_memory_allocated(predictor.device) / 2**20 if gpu else peak_rss_mib(),
        seconds=count * (windows * seconds + scan.seconds),
    )


def seen(layout: Layout, shape: tuple[int, int]) -> float:
    """Return the mean share of the slice that the network sees per window, 0 to 1."""
    areas = layout.view_shape.prod(1).double()
    return float(areas.mean()) / (shape[0] * shape[1]) if len(areas) else 1.0


@torch.inference_mode()
def window_flops(network: Method, shape: tuple[int, int], window: int, part: float = 1.0) -> float:
    """Count the floating-point operations of one window's forward pass (a multiply-add counts as two), in float32.

    Args:
        network: The network.
        shape: (H, W) of the slice, pixels.
        window: Side p.
        part: Share of the slice that the U-Net sees, see :func:`seen`; the MAE sees all of it.
    """
    image, mask, t = window_inputs(network, shape, window, 1)
    with FlopCounterMode(display=False) as whole:
        network(image, mask, t, **_guide(network, image))
    with FlopCounterMode(display=False) as condition:
        network.features(image, mask)
    return float(condition.get_total_flops() + part * (whole.get_total_flops() - condition.get_total_flops()))


@torch.inference_mode()
def time_batch(network: Method, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], *, bf16: bool) -> float:
    """Measure the seconds per window of a warm batch in the network, as the engine runs it."""
    device = inputs[0].device
    for _ in range(2):  # the first pass warms up
        synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            network(*inputs, **_guide(network, inputs[0]))
        synchronize(device)
        seconds = time.perf_counter() - start
    return seconds / len(inputs[0])


def _guide(network: Method, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Build the guide of side networks for windows (B, C, H, W), as a keyword; none without them."""
    width = sum(map(len, network.guide_channels))
    return {"guide": image.new_zeros(len(image), width, *image.shape[2:])} if width else {}


def _first_usable(predictor: Predictor, todo: Sequence[PlannedCase]) -> LoadedScan:
    """Prepare the first usable scan; scans that cannot be used are skipped, as in a run."""
    for item in todo[:-1]:
        try:
            return predictor.prepare(item.images, item.mask)
        except MAEDiffError as error:
            log.warning("%s cannot be used: %s", item.case, error)
    return predictor.prepare(todo[-1].images, todo[-1].mask)


def window_inputs(
    network: Method, shape: tuple[int, int], window: int, batch: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Build a batch of noised windows in the corner of a slice: image (neighbours included), mask and timesteps."""
    device = next(network.parameters()).device
    channels = network.channels + network.neighbour_channels
    mask = torch.zeros(batch, 1, *shape, device=device)
    mask[..., :window, :window] = 1
    return (
        torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(0)).to(device),
        mask,
        torch.ones(batch, dtype=torch.long, device=device),
    )
