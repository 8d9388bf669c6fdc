"""Sliding-window reconstruction: every window of every slice in large batches, blended by weight.

Source: MAEDiff, arXiv 2401.10561: at test time the patch slides over the slice with step s and overlapping outputs are
averaged. Batching windows of all slices together, skipping windows without brain, Gaussian weights, and the mean and
deviation over several timesteps and noise draws are ours.

Shapes: S slices of C channels; B passes of a batch, each a view (h, w) of its slice.
"""

from __future__ import annotations

import logging
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maediff.config import Config
from maediff.cores import Cores, core_count
from maediff.diffusion.noise import generator, noise_field
from maediff.methods.base import Healthy, Key, Method, OnWindows
from maediff.methods.maediff.layout import Batch, Layout, lay_out, view_step
from maediff.methods.maediff.memory import choose_batch, is_out_of_memory, window_bytes
from maediff.methods.maediff.partition import Blend, blend_weight, window_masks
from maediff.methods.maediff.window import Seen, WindowEngine
from maediff.methods.neighbours import with_neighbours

log = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)


class SlidingReconstructor(WindowEngine):
    """Engine that reconstructs the healthy version of slices.

    Args:
        network: Trained network of windows, in eval mode, on `device`.
        config: Configuration of the network.
        device: Where to compute.
        bf16: Run the network under bf16 autocast; blending stays in float32.
    """

    def __init__(self, network: Method, config: Config, device: torch.device, *, bf16: bool) -> None:
        super().__init__(network, config, device, bf16=bf16)
        self.batch: int | None = None  # windows per pass: chosen at the first use, halved if memory runs out
        self.channels = config.reconstructed_channels
        self.offsets = config.data.offsets

    @torch.inference_mode()
    def __call__(self, slices: Tensor, mask: Tensor, key: Key, on_batch: OnWindows | None = None) -> Healthy:
        """Reconstruct; the result does not depend on the batch size or on the order of windows.

        Args:
            slices: (S, H, W), or (S, C, H, W) of several channels; float32, -1 outside the brain. Channels that only
                side networks see come last. Neighbours are taken from the same stack, whose order is that of the scan.
            mask: (S, H, W) bool, the brain.
            key: Seed of the noise besides the slice index, such as (run seed, case).
            on_batch: Progress callback, called with (windows done, windows in total).

        Returns:
            Mean and deviation of the reconstructed channels. Pixels that no computed window covers are returned
            unchanged.
        """
        height, width = slices.shape[-2:]
        layout = self.layout(mask)
        several = self.channels > 1 or (slices.ndim == 4 and not self.config.structure.kinds)
        given = (len(slices), *((self.channels,) if several else ()), height, width)
        slices = self._with_guide(self._padded(slices.float().reshape(len(slices), -1, height, width), -1.0))

        def reconstruct(t: int, pass_key: Key, notice: OnWindows) -> Tensor:
            return self._reconstruct(slices, layout, t, pass_key, notice)

        mean, deviation = self.average(slices[:, : self.channels], key, reconstruct, on_batch)
        mean = mean[..., :height, :width].reshape(given)
        if deviation is None:
            return Healthy(mean, None)
        return Healthy(mean, deviation[..., :height, :width].reshape(given))

    def _with_guide(self, slices: Tensor) -> Tensor:
        """Put what side networks see behind the channels that are reconstructed (S, C + K, H, W)."""
        if not self.config.structure.kinds:
            return slices
        guide = self.network.guides(slices.to(self.device))
        return slices if guide is None else torch.cat([slices[:, : self.channels], guide.to(slices)], 1)

    def padded_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the shape (H, W) that slices are padded to: multiples of the cell and of the U-Net's factor."""
        step = view_step(self.config)
        return shape[0] + -shape[0] % step, shape[1] + -shape[1] % step

    def layout(self, mask: Tensor) -> Layout:
        """Lay windows over the brain (S, H, W), padded to :meth:`padded_shape`."""
        return lay_out(self._padded(mask, False), self.config)

    def _padded(self, stack: Tensor, value: float) -> Tensor:
        """Pad slices at the far ends to :meth:`padded_shape`."""
        height, width = self.padded_shape((stack.shape[-2], stack.shape[-1]))
        return F.pad(stack, (0, width - stack.shape[-1], 0, height - stack.shape[-2]), value=value)

    def _reconstruct(self, slices: Tensor, layout: Layout, t: int, key: Key, on_batch: OnWindows) -> Tensor:
        """Reconstruct all windows at one timestep with one noise field per slice, and blend them."""
        shape = (slices.shape[2], slices.shape[3])
        side = self.config.partition.window
        slices = slices.to(self.device)
        images = slices[:, : self.channels]

        # One noise field per slice, not per window: overlapping windows see the same noise for every batch size.
        noise = self._noise(images, layout, key).to(self.device)

        # Masks and weights are placed once per corner of the grid; batches pick theirs by index.
        masks = window_masks(layout.corners, side, shape).to(self.device)
        weights = _placed(blend_weight(side, self.config.infer.blend), layout.corners, shape).to(self.device)

        @torch.inference_mode()
        def estimate_of(part: Batch) -> Tensor:
            return self.restore(self._seen(slices, noise, masks, part, key), t)

        # A batch that does not fit into memory is halved and retried; noise and sums do not depend on its size.
        blend = Blend(images)
        start = 0
        with Cores(core_count(self.device)) as cores:
            while start < len(layout):
                batch = layout.batch(start, self.windows_per_pass(shape), self.device)
                full = False
                try:
                    estimate = torch.cat(cores.map(estimate_of, batch.divided(cores.count)))
                except (MemoryError, RuntimeError) as error:
                    if len(batch) == 1 or not is_out_of_memory(error):
                        raise
                    full = True
                if full:  # now the error is gone, and with it the tensors of the pass that failed
                    self._halve(len(batch))
                    continue
                weight = batch.own_views(batch.united(weights))  # zero where the view extends beyond the windows
                blend.add(estimate, weight, batch.slice_index, batch.origin)
                start += len(batch)
                on_batch(start, len(layout))
        return blend.average().cpu()

    def windows_per_pass(self, shape: tuple[int, int]) -> int:
        """Return the windows per pass; if the configuration is auto, they are chosen once from the free memory."""
        if self.batch is None:
            wanted = self.config.infer.batch_size
            size = window_bytes(self.config, shape, bf16=self.bf16)
            self.batch = choose_batch(size, self.device) if wanted == "auto" else wanted
            log.debug("%d windows per pass, about %.0f MiB", self.batch, self.batch * size / 2**20)
        return self.batch

    def _halve(self, size: int) -> None:
        """Halve the batch, since memory ran out, and give back what a GPU keeps."""
        self.batch = size // 2
        log.warning("out of memory with %d windows per pass; going on with %d", size, self.batch)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _seen(self, slices: Tensor, noise: Tensor, masks: Tensor, batch: Batch, key: Key) -> Seen:
        """Cut out the network's input, and compute the features of the visible region once for all steps."""
        images, guide = slices[:, : self.channels], slices[:, self.channels :]
        hidden = batch.united(masks)

        # The MAE sees the whole slice even if the U-Net sees only a view, so the U-Net is informed about the rest.
        whole = with_neighbours(images, batch.slice_index, self.offsets)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.network.features(whole, hidden)
        if features is not None and self.config.model.condition == "residual":
            features = batch.own_views(features, self.config.partition.cell)

        def draw(name: object, step: int) -> Tensor:
            """Draw fresh noise, one field per slice as above; passes of the same slice share it."""
            indices, of_pass = batch.slice_index.unique(return_inverse=True)
            fields = [self._field(images, (*key, name, step, index)) for index in indices.tolist()]
            return batch.views(torch.stack(fields).to(images), of_pass)

        return Seen(
            x0=batch.views(images, batch.slice_index),
            noise=batch.views(noise, batch.slice_index),
            window=batch.own_views(hidden),
            features=features,
            neighbours=batch.own_views(whole[:, self.channels :]) if self.offsets else None,
            guide=batch.views(guide, batch.slice_index) if guide.shape[1] else None,
            draw=draw,
        )

    def _noise(self, slices: Tensor, layout: Layout, key: Key) -> Tensor:
        """Draw one noise field per slice: (S, C, H, W); slices without windows stay zero."""
        noise = torch.zeros_like(slices, device="cpu")
        for index in layout.slice_index.unique().tolist():
            noise[index] = self._field(slices, (*key, index))
        return noise

    def _field(self, like: Tensor, key: Key) -> Tensor:
        _, channels, height, width = like.shape
        return noise_field(self.config.diffusion.noise, (height, width), generator(*key), channels)


def _placed(weight: Tensor, corners: Tensor, shape: tuple[int, int]) -> Tensor:
    """Place the weights of a window at each origin: (N, 1, H, W) for N corners."""
    side = len(weight)
    placed = torch.zeros(len(corners), 1, *shape)
    for index, (row, column) in enumerate(corners.tolist()):
        placed[index, 0, row : row + side, column : column + side] = weight
    return placed
