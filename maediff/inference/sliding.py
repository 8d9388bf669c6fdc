"""Sliding-window reconstruction: every window of every slice in large batches, blended by weight.

Source: MAEDiff, arXiv 2401.10561: at test time the patch slides over the slice with step s and overlapping outputs are
averaged. Batching windows of all slices together, skipping windows without brain, Gaussian weights, and the mean and
deviation over several timesteps and noise draws are ours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from maediff import diffusion
from maediff.config import Config
from maediff.inference.memory import choose_batch, is_out_of_memory, window_bytes
from maediff.models.baselines import PatchedDDPM
from maediff.models.objective import sampler_times
from maediff.models.reconstructor import Reconstructor
from maediff.noise import generator, noise_field
from maediff.partition import blend_weight, window_grid, window_masks, windows_with_brain

log = logging.getLogger(__name__)
Key = tuple[object, ...]


class Healthy(NamedTuple):
    """Healthy reconstruction of a stack of slices, both (S, H, W) float32 on the CPU.

    `deviation` is the standard deviation over timesteps and noise draws; None where there is only one.
    """

    mean: Tensor
    deviation: Tensor | None


@dataclass(frozen=True)
class Plan:
    """Which windows of which slices are computed.

    Attributes:
        corners: (N, 2) origins of the windows of a slice.
        windows: (K, 2) slice index and index into `corners`.
        passes: Forward passes of a window: timesteps times draws times sampler steps.
    """

    corners: Tensor
    windows: Tensor
    passes: int


def plan(mask: Tensor, config: Config) -> Plan:
    """Lay windows over slices and leave out those without brain.

    Args:
        mask: (S, H, W) bool, the brain.
        config: Window, stride, timesteps, draws and sampler.
    """
    kind, side = config.diffusion, config.partition.window
    corners = window_grid((mask.shape[1], mask.shape[2]), side, config.partition.stride)
    windows = windows_with_brain(mask, corners, side)
    windows = windows[windows[:, 1].argsort(stable=True)]  # one corner after another: a batch hides the same cells
    steps = sum(len(sampler_times(kind, t)) - 1 for t in kind.test_timesteps)
    return Plan(corners, windows, steps * config.infer.draws)


class SlidingReconstructor:
    """Reconstruct the healthy version of slices.

    Args:
        network: Trained reconstructor, in eval mode, on `device`.
        config: Configuration that it was trained with.
        device: Where to compute.
        bf16: Run the network under bf16 autocast; blending stays in float32.
    """

    def __init__(
        self, network: Reconstructor | PatchedDDPM, config: Config, device: torch.device, *, bf16: bool
    ) -> None:
        self.network = network
        self.config = config
        self.device = device
        self.bf16 = bf16
        self.batch: int | None = None  # windows a pass: chosen at the first use, halved where memory runs out
        self.abar = diffusion.schedule(config.diffusion.schedule, config.diffusion.timesteps)

    @torch.inference_mode()
    def __call__(
        self, slices: Tensor, mask: Tensor, key: Key, on_batch: Callable[[int, int], None] | None = None
    ) -> Healthy:
        """Reconstruct; the result does not depend on the batch size or on the order of windows.

        Args:
            slices: (S, H, W) float32, -1 outside the brain.
            mask: (S, H, W) bool, the brain.
            key: What the noise depends on besides the slice index, such as (run seed, case).
            on_batch: Told how many windows are done, of how many.

        Returns:
            Mean and deviation. Pixels that no computed window covers are returned as they came.
        """
        height, width = slices.shape[1:]
        slices, mask = self._padded(slices.float(), mask)
        layout, total = plan(mask, self.config), 0
        count = len(self.config.diffusion.test_timesteps) * self.config.infer.draws
        mean, square = torch.zeros_like(slices), torch.zeros_like(slices)
        for t in self.config.diffusion.test_timesteps:
            for draw in range(self.config.infer.draws):
                pass_index = total
                total += 1
                one = self._reconstruct(slices, layout, t, (*key, t, draw), _notice(on_batch, pass_index, count))
                gap = one - mean  # Welford's update keeps the deviation exact where draws agree
                mean += gap / total
                square += gap * (one - mean)
        deviation = (square / (total - 1)).sqrt()[:, :height, :width] if total > 1 else None
        return Healthy(mean[:, :height, :width], deviation)

    def padded_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the (H, W) that the network sees: what cells and U-Net levels divide, for slices that grew."""
        step = math.lcm(
            self.config.partition.cell, self.config.model.patch * 2 ** (len(self.config.model.channels) - 1)
        )
        return shape[0] + -shape[0] % step, shape[1] + -shape[1] % step

    def _padded(self, slices: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pad slices that grew beyond the trained size."""
        height, width = self.padded_shape((slices.shape[1], slices.shape[2]))
        extra = (0, width - slices.shape[2], 0, height - slices.shape[1])
        return F.pad(slices, extra, value=-1.0), F.pad(mask, extra)

    def _reconstruct(
        self, slices: Tensor, layout: Plan, t: int, key: Key, on_batch: Callable[[int, int], None]
    ) -> Tensor:
        """Reconstruct all windows at one timestep with one noise field a slice, and blend them."""
        shape = (slices.shape[1], slices.shape[2])
        side, device = self.config.partition.window, self.device
        images, noise = slices[:, None].to(device), self._noise(slices, layout, key).to(device)
        masks = window_masks(layout.corners, side, shape).to(device)
        weights = _placed(blend_weight(side, self.config.infer.blend), layout.corners, shape).to(device)
        total, mass = torch.zeros_like(images), torch.zeros_like(images)
        start = 0
        while start < len(layout.windows):
            rows = layout.windows[start : start + self.windows_a_pass(shape)]
            where, which = rows.to(device).unbind(1)
            try:
                estimate = self._sample(images[where], noise[where], masks[which], t, (key, rows[:, 0]))
            except (MemoryError, RuntimeError) as error:
                self._halve(len(rows), error)
                continue
            total.index_add_(0, where, weights[which] * estimate)
            mass.index_add_(0, where, weights[which])
            start += len(rows)
            on_batch(start, len(layout.windows))
        healthy = torch.where(mass > 0, total / mass.clamp(min=1e-12), images)
        return healthy.squeeze(1).cpu()

    def windows_a_pass(self, shape: tuple[int, int]) -> int:
        """Return how many windows a pass takes, chosen once from the memory at hand where the configuration is auto."""
        if self.batch is None:
            wanted = self.config.infer.batch_size
            size = window_bytes(self.config, shape, bf16=self.bf16)
            self.batch = choose_batch(size, self.device) if wanted == "auto" else wanted
            log.debug("%d windows a pass, about %.0f MiB", self.batch, self.batch * size / 2**20)
        return self.batch

    def _halve(self, size: int, error: BaseException) -> None:
        """Go on with half the batch where memory ran out; raise any other error, and this one for a single window."""
        if size == 1 or not is_out_of_memory(error):
            raise error
        self.batch = size // 2
        log.warning("out of memory with %d windows a pass; going on with %d", size, self.batch)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _sample(self, x0: Tensor, noise: Tensor, window: Tensor, t: int, source: tuple[Key, Tensor]) -> Tensor:
        """Noise the window to level t and walk back down; everything outside it stays as scanned."""
        perturbed = diffusion.partially_noise(x0, noise, window, self.abar[t].to(x0))

        def denoise(x_t: Tensor, step: int) -> Tensor:
            return self._estimate(window * x_t + (1 - window) * x0, window, step)

        def draw_noise(step: int) -> Tensor:
            key, where = source
            slices, back = where.unique(return_inverse=True)
            fields = [self._field(x0, (*key, "ancestral", step, index)) for index in slices.tolist()]
            return torch.stack(fields)[back].to(x0)

        ancestral = self.config.diffusion.sampler == "ancestral"
        return diffusion.sample(
            denoise, perturbed, self.abar, sampler_times(self.config.diffusion, t), draw_noise if ancestral else None
        )

    def _estimate(self, perturbed: Tensor, window: Tensor, t: int) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            steps = torch.full((len(perturbed),), t, device=self.device)
            prediction = self.network(perturbed, window, steps).prediction
        abar_t, abar_s = self.abar[t].to(perturbed), self.abar[t - 1].to(perturbed)
        return diffusion.x0_from(self.config.diffusion.objective, prediction.float(), perturbed, abar_t, abar_s)

    def _noise(self, slices: Tensor, layout: Plan, key: Key) -> Tensor:
        """Draw one noise field a slice: (S, 1, H, W); slices without windows need none."""
        noise = torch.zeros_like(slices)[:, None]
        for index in layout.windows[:, 0].unique().tolist():
            noise[index] = self._field(slices, (*key, index))
        return noise

    def _field(self, like: Tensor, key: Key) -> Tensor:
        return noise_field(self.config.diffusion.noise, (like.shape[-2], like.shape[-1]), generator(*key))


def _placed(weight: Tensor, corners: Tensor, shape: tuple[int, int]) -> Tensor:
    """Place the weights of a window at each origin: (N, 1, H, W)."""
    side = len(weight)
    placed = torch.zeros(len(corners), 1, *shape)
    for index, (row, column) in enumerate(corners.tolist()):
        placed[index, 0, row : row + side, column : column + side] = weight
    return placed


def _notice(on_batch: Callable[[int, int], None] | None, done: int, count: int) -> Callable[[int, int], None]:
    """Count windows over all passes."""

    def notice(windows: int, of: int) -> None:
        if on_batch is not None:
            on_batch(done * of + windows, count * of)

    return notice
