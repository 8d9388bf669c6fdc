"""Sliding-window reconstruction: every window of every slice in large batches, blended by weight.

Source: MAEDiff, arXiv 2401.10561: at test time the patch slides over the slice with step s and overlapping outputs are
averaged. Batching windows of all slices together, skipping windows without brain, Gaussian weights, and the mean and
deviation over several timesteps and noise draws are ours.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maediff import diffusion
from maediff.config import Config
from maediff.diffusion.noise import generator, noise_field
from maediff.methods.build import PatchedDDPM
from maediff.methods.maediff.layout import Batch, Plan, plan, view_step
from maediff.methods.maediff.memory import choose_batch, is_out_of_memory, window_bytes
from maediff.methods.maediff.partition import blend_weight, window_masks
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.methods.objective import sampler_times

log = logging.getLogger(__name__)
Key = tuple[object, ...]
Network = TypeVar("Network")


class Healthy(NamedTuple):
    """Healthy reconstruction of a stack of slices, both of its shape, float32 on the CPU.

    `deviation` is the standard deviation over timesteps and noise draws; None where there is only one.
    """

    mean: Tensor
    deviation: Tensor | None


class _Seen(NamedTuple):
    """Windows of a pass as the network sees them, (B, C, h, w) each, and how to see more of a slice's noise."""

    x0: Tensor
    noise: Tensor
    window: Tensor
    features: Tensor | None
    field: Callable[[object, int], Tensor]


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
        self.network = with_bf16_convolutions(network) if bf16 else network
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
            slices: (S, H, W), or (S, C, H, W) of several channels; float32, -1 outside the brain.
            mask: (S, H, W) bool, the brain.
            key: What the noise depends on besides the slice index, such as (run seed, case).
            on_batch: Told how many windows are done, of how many.

        Returns:
            Mean and deviation. Pixels that no computed window covers are returned as they came.
        """
        given, (height, width) = slices.shape, slices.shape[-2:]
        slices = slices.float().reshape(len(slices), -1, height, width)
        layout, slices, total = self.layout(mask), self._grown(slices, -1.0), 0
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
        deviation = (square / (total - 1)).sqrt()[..., :height, :width].reshape(given) if total > 1 else None
        return Healthy(mean[..., :height, :width].reshape(given), deviation)

    def padded_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the (H, W) that the network sees: what cells and U-Net levels divide, for slices that grew."""
        step = view_step(self.config)
        return shape[0] + -shape[0] % step, shape[1] + -shape[1] % step

    def layout(self, mask: Tensor) -> Plan:
        """Plan the windows of slices with the brain (S, H, W), grown to what the network divides."""
        return plan(self._grown(mask, False), self.config)

    def _grown(self, stack: Tensor, value: float) -> Tensor:
        """Pad slices to what the network divides."""
        height, width = self.padded_shape((stack.shape[-2], stack.shape[-1]))
        return F.pad(stack, (0, width - stack.shape[-1], 0, height - stack.shape[-2]), value=value)

    def _reconstruct(
        self, slices: Tensor, layout: Plan, t: int, key: Key, on_batch: Callable[[int, int], None]
    ) -> Tensor:
        """Reconstruct all windows at one timestep with one noise field a slice, and blend them."""
        shape = (slices.shape[2], slices.shape[3])
        side, device = self.config.partition.window, self.device
        images, noise = slices.to(device), self._noise(slices, layout, key).to(device)
        masks = window_masks(layout.corners, side, shape).to(device)
        weights = _placed(blend_weight(side, self.config.infer.blend), layout.corners, shape).to(device)
        total, mass = torch.zeros_like(images.transpose(0, 1)).flatten(1), torch.zeros_like(images[:, :1])
        start = 0
        while start < len(layout.windows):
            batch = layout.batch(start, self.windows_a_pass(shape), device)
            try:
                estimate = self._sample(self._seen(images, noise, masks, batch, key), t)
            except (MemoryError, RuntimeError) as error:
                self._halve(len(batch), error)
                continue
            weight, pixels = batch.see_own(batch.united(weights)), batch.pixels(shape)
            for sums, channel in zip(total, estimate.split(1, 1), strict=True):
                sums.index_add_(0, pixels, (weight * channel).flatten())
            mass.view(-1).index_add_(0, pixels, weight.flatten())
            start += len(batch)
            on_batch(start, len(layout.windows))
        sums = total.view(-1, len(images), *shape).transpose(0, 1)
        return torch.where(mass > 0, sums / mass.clamp(min=1e-12), images).cpu()

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

    def _seen(self, images: Tensor, noise: Tensor, masks: Tensor, batch: Batch, key: Key) -> _Seen:
        """Cut out what the network sees, and compute the features of the visible region once for all its steps."""
        features, hidden = None, batch.united(masks)
        if isinstance(self.network, Reconstructor):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                features = self.network.features(images[batch.where], hidden)
            if features is not None and self.config.model.condition == "residual":
                features = batch.see_own(features, self.config.partition.cell)

        def field(name: object, step: int) -> Tensor:
            slices, back = batch.where.unique(return_inverse=True)
            fields = [self._field(images, (*key, name, step, index)) for index in slices.tolist()]
            return batch.see(torch.stack(fields).to(images), back)

        x0, eps = batch.see(images, batch.where), batch.see(noise, batch.where)
        return _Seen(x0, eps, batch.see_own(hidden), features, field)

    def _sample(self, seen: _Seen, t: int) -> Tensor:
        """Noise the window to level t and walk back down; everything outside it stays as scanned."""
        x0, window = seen.x0, seen.window
        perturbed = diffusion.partially_noise(x0, seen.noise, window, self.abar[t].to(x0))

        def denoise(x_t: Tensor, step: int) -> Tensor:
            return self._estimate(window * x_t + (1 - window) * x0, seen, step)

        def draw_noise(step: int) -> Tensor:
            return seen.field("ancestral", step)

        ancestral = self.config.diffusion.sampler == "ancestral"
        return diffusion.sample(
            denoise, perturbed, self.abar, sampler_times(self.config.diffusion, t), draw_noise if ancestral else None
        )

    def _estimate(self, perturbed: Tensor, seen: _Seen, t: int) -> Tensor:
        known = () if seen.features is None else (seen.features,)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            steps = torch.full((len(perturbed),), t, device=self.device)
            prediction = self.network(perturbed, seen.window, steps, *known).prediction
        abar_t, abar_s = self.abar[t].to(perturbed), self.abar[t - 1].to(perturbed)
        return diffusion.x0_from(self.config.diffusion.objective, prediction.float(), perturbed, abar_t, abar_s)

    def _noise(self, slices: Tensor, layout: Plan, key: Key) -> Tensor:
        """Draw one noise field a slice: (S, C, H, W); slices without windows need none."""
        noise = torch.zeros_like(slices)
        for index in layout.windows[:, 0].unique().tolist():
            noise[index] = self._field(slices, (*key, index))
        return noise

    def _field(self, like: Tensor, key: Key) -> Tensor:
        _, channels, height, width = like.shape
        return noise_field(self.config.diffusion.noise, (height, width), generator(*key), channels)


def with_bf16_convolutions(network: Network) -> Network:
    """Copy a network with its convolutions in bf16: autocast would convert them anew in each pass, to the same values.

    Callables that are no modules, such as stand-ins of tests, are returned as they are.
    """
    if not isinstance(network, nn.Module):
        return network
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)
    return network


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
