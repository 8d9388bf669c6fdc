"""Restore the inside of windows: what the engines of squares and of cubes share.

Source: MAEDiff, arXiv 2401.10561: the inside of the window is noised to level t and walked back down; everything
outside it stays unchanged. The mean and deviation over several timesteps and noise draws are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from maediff import diffusion
from maediff.config import Config
from maediff.methods.base import Key, Method, OnWindows
from maediff.methods.objective import sampler_times

Network = TypeVar("Network", bound=nn.Module)
Reconstruct = Callable[[int, Key, OnWindows], Tensor]
"""Reconstruct all windows at a timestep, with noise of a key and a progress callback."""


class Seen(NamedTuple):
    """Input of the network for a batch, (B, C, h, w) or (B, C, D, H, W) each, and a function that draws more noise."""

    x0: Tensor
    noise: Tensor
    window: Tensor
    features: Tensor | None
    neighbours: Tensor | None
    guide: Tensor | None
    draw: Callable[[object, int], Tensor]


class WindowEngine:
    """A network that restores windows, and how it is run.

    Args:
        network: Trained network of windows, in eval mode, on `device`.
        config: Configuration of the network.
        device: Where to compute.
        bf16: Run the network under bf16 autocast; blending stays in float32.
    """

    def __init__(self, network: Method, config: Config, device: torch.device, *, bf16: bool) -> None:
        self.network = with_bf16_convolutions(network) if bf16 else network
        self.config = config
        self.device = device
        self.bf16 = bf16
        self.abar = diffusion.schedule(config.diffusion.schedule, config.diffusion.timesteps)

    def average(
        self, images: Tensor, key: Key, reconstruct: Reconstruct, on_batch: OnWindows | None
    ) -> tuple[Tensor, Tensor | None]:
        """Average the reconstructions of all timesteps and draws.

        Args:
            images: What is reconstructed, for its shape.
            key: Seed of the noise besides timestep and draw.
            reconstruct: Returns a reconstruction of the shape of `images`.
            on_batch: Progress callback, called with (windows done, windows in total).

        Returns:
            Mean and standard deviation; no deviation of a single one.
        """
        kind = self.config.diffusion
        keys = [(t, (*key, t, draw)) for t in kind.test_timesteps for draw in range(self.config.infer.draws)]
        # Welford's update needs no stored passes, and gives a deviation of exactly 0 if all draws agree.
        mean, square = torch.zeros_like(images), torch.zeros_like(images)
        for done, (t, pass_key) in enumerate(keys):
            one = reconstruct(t, pass_key, _notice(on_batch, done, len(keys)))
            gap = one - mean
            mean += gap / (done + 1)
            square += gap * (one - mean)
        return mean, None if len(keys) == 1 else (square / (len(keys) - 1)).sqrt()

    def restore(self, seen: Seen, t: int) -> Tensor:
        """Noise the window to level t and walk back down; everything outside it stays unchanged."""
        x0, window = seen.x0, seen.window
        perturbed = diffusion.partially_noise(x0, seen.noise, window, self.abar[t].to(x0))

        def denoise(x_t: Tensor, step: int) -> Tensor:
            return self._estimate(window * x_t + (1 - window) * x0, seen, step)

        def draw_noise(step: int) -> Tensor:
            return seen.draw("ancestral", step)

        ancestral = self.config.diffusion.sampler == "ancestral"
        times = sampler_times(self.config.diffusion, t)
        return diffusion.sample(denoise, perturbed, self.abar, times, draw_noise if ancestral else None)

    def _estimate(self, perturbed: Tensor, seen: Seen, t: int) -> Tensor:
        """Estimate x_0 of the views (B, C, h, w) at one timestep."""
        known = () if seen.features is None else (seen.features,)
        steer = {} if seen.guide is None else {"guide": seen.guide}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            steps = torch.full((len(perturbed),), t, device=self.device)
            known_image = perturbed if seen.neighbours is None else torch.cat([perturbed, seen.neighbours], 1)
            prediction = self.network(known_image, seen.window, steps, *known, **steer).prediction
        abar_t = self.abar[t].to(perturbed)
        abar_s = self.abar[t - 1].to(perturbed)
        return diffusion.x0_from(self.config.diffusion.objective, prediction.float(), perturbed, abar_t, abar_s)


def with_bf16_convolutions(network: Network) -> Network:
    """Copy a network with bf16 convolutions; autocast would convert them to the same values in each pass."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.to(torch.bfloat16)
    return network


def _notice(on_batch: OnWindows | None, passes_done: int, passes: int) -> OnWindows:
    """Count windows over all timesteps and draws."""

    def notice(windows: int, of: int) -> None:
        if on_batch is not None:
            on_batch(passes_done * of + windows, passes * of)

    return notice
