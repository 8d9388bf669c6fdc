"""MAEDiff in three dimensions: cubes instead of squares, on a grid of equal spacing in all directions. [ours]

The paper works on slices, whose maps flicker from one slice to the next. Here the window is a cube, the cells of the
masked autoencoder are cubes, and the U-Net convolves in three dimensions and sees the whole brain. Everything else is
the paper's: the inside of the window is noised, the autoencoder sees the cells outside it, and the window slides.
Training volumes are drawn from label maps, see :mod:`maediff.heads.volume`; they may be smaller than a brain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from maediff import diffusion
from maediff.config import Config
from maediff.cores import Cores, core_count
from maediff.diffusion.noise import generator, noise_field
from maediff.methods.base import Healthy, Key, OnWindows
from maediff.methods.maediff.layout import view_step
from maediff.methods.maediff.partition import blend_weight, window_grid, window_masks
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.methods.maediff.sliding import with_bf16_convolutions
from maediff.methods.objective import sampler_times


class VolumetricReconstructor(Reconstructor):
    """The reconstructor of volumes (B, C, D, H, W); see :class:`~maediff.methods.maediff.reconstructor.Reconstructor`.

    It has no side networks, and sees neither neighbours, since all slices are there, nor the other hemisphere.
    """

    dims: ClassVar[int] = 3

    def engine(self, config: Config, device: torch.device, *, bf16: bool) -> CubeReconstructor:
        """Return the engine that slides the cube through the volume."""
        return CubeReconstructor(self, config, device, bf16=bf16)


class CubeReconstructor:
    """Engine that reconstructs the healthy version of a stack of slices as one volume, cube after cube.

    Args:
        network: Trained network, in eval mode, on `device`.
        config: Configuration of the network.
        device: Where to compute.
        bf16: Run the network under bf16 autocast; blending stays in float32.
    """

    def __init__(self, network: VolumetricReconstructor, config: Config, device: torch.device, *, bf16: bool) -> None:
        self.network = with_bf16_convolutions(network) if bf16 else network
        self.config = config
        self.device = device
        self.bf16 = bf16
        self.abar = diffusion.schedule(config.diffusion.schedule, config.diffusion.timesteps)

    @torch.inference_mode()
    def __call__(self, slices: Tensor, mask: Tensor, key: Key, on_batch: OnWindows | None = None) -> Healthy:
        """Reconstruct all cubes that hold brain, and average them where they overlap.

        Args:
            slices: (S, H, W) float32, as far apart as pixels are wide; -1 outside the brain.
            mask: (S, H, W) bool, the brain.
            key: Seed of the noise, such as (run seed, case).
            on_batch: Progress callback, called with (cubes done, cubes in total).

        Returns:
            Mean and deviation (S, H, W) over timesteps and draws. Voxels that no cube covers are returned unchanged.
        """
        kind, slices = self.config.diffusion, slices.float()
        keys = [(t, (*key, t, draw)) for t in kind.test_timesteps for draw in range(self.config.infer.draws)]
        results = slices[None].repeat(len(keys), 1, 1, 1)
        if bool(mask.any()):
            place = Place.around(mask, view_step(self.config), self.config.partition.window)
            volume = place.fit(slices, -1.0)
            corners = self._corners(place.fit(mask, False))
            for number, (t, pass_key) in enumerate(keys):
                noise = noise_field(kind.noise, tuple(volume.shape), generator(*pass_key))[0]
                notice = _notice(on_batch, number * len(corners), len(keys) * len(corners))
                estimate = self._reconstruct(_Pass(volume, noise, t, pass_key), corners, notice)
                results[number] = place.put_back(estimate, slices)
        return Healthy(results.mean(0), results.std(0) if len(keys) > 1 else None)

    def _corners(self, brain: Tensor) -> Tensor:
        """List the first voxels (N, 3) of the cubes that hold brain (D, H, W)."""
        side, stride = self.config.partition.window, self.config.partition.stride
        corners = window_grid(tuple(brain.shape), side, stride)
        held = [bool(brain[_cube(corner, side)].any()) for corner in corners.tolist()]
        return corners[torch.tensor(held)]

    def _reconstruct(self, one: _Pass, corners: Tensor, notice: Callable[[int], None]) -> Tensor:
        """Reconstruct all cubes at one timestep, and blend them: (D, H, W)."""
        side = self.config.partition.window
        weight = blend_weight(side, self.config.infer.blend, dims=3)
        total, mass = torch.zeros_like(one.volume), torch.zeros_like(one.volume)

        @torch.inference_mode()
        def estimate_of(corner: Tensor) -> Tensor:
            return self._estimate(one, corner)

        done = 0
        most = self.config.infer.batch_size
        count = core_count(self.device)
        with Cores(count if most == "auto" else min(count, most)) as cores:
            for group in corners.split(cores.count):
                for corner, estimate in zip(group.tolist(), cores.map(estimate_of, list(group)), strict=True):
                    cube = _cube(corner, side)
                    total[cube] += weight * estimate[cube]
                    mass[cube] += weight
                done += len(group)
                notice(done)
        return torch.where(mass > 0, total / mass.clamp(min=1e-12), one.volume)

    def _estimate(self, one: _Pass, corner: Tensor) -> Tensor:
        """Noise a cube to level t and walk back down; everything outside it stays unchanged: (D, H, W)."""
        kind = self.config.diffusion
        x0, noise = (part[None, None].to(self.device) for part in (one.volume, one.noise))
        window = window_masks(corner[None], self.config.partition.window, tuple(one.volume.shape)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.network.features(x0, window)

        def denoise(x_t: Tensor, step: int) -> Tensor:
            seen = window * x_t + (1 - window) * x0
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                steps = torch.full((1,), step, device=self.device)
                prediction = self.network(seen, window, steps, features).prediction.float()
            return diffusion.x0_from(
                kind.objective, prediction, seen, self.abar[step].to(x0), self.abar[step - 1].to(x0)
            )

        def draw_noise(step: int) -> Tensor:
            return noise_field(kind.noise, tuple(one.volume.shape), generator(*one.key, "ancestral", step))[None].to(x0)

        perturbed = diffusion.partially_noise(x0, noise, window, self.abar[one.t].to(x0))
        walk = draw_noise if kind.sampler == "ancestral" else None
        return diffusion.sample(denoise, perturbed, self.abar, sampler_times(kind, one.t), walk)[0, 0].cpu()


class _Pass(NamedTuple):
    """One reconstruction of a volume (D, H, W): its noise of the same shape, the timestep, the seed of more noise."""

    volume: Tensor
    noise: Tensor
    t: int
    key: Key


class Place(NamedTuple):
    """Where the brain of a stack of slices lies in the volume that a network sees.

    Attributes:
        slices: First slice with brain, and the one after the last.
        pads: Voxels before and after, of the last axis first, as :func:`torch.nn.functional.pad` takes them.
    """

    slices: tuple[int, int]
    pads: tuple[int, ...]

    @classmethod
    def around(cls, mask: Tensor, step: int, least: int = 1) -> Place:
        """Place slices (S, H, W) in a volume with the brain in the middle of its slices.

        Args:
            mask: Brain, not empty.
            step: Sides are multiples of it.
            least: Least side; a cube must fit.
        """
        with_brain = mask.flatten(1).any(1).nonzero().flatten().tolist()
        first, end = with_brain[0], with_brain[-1] + 1
        sides = (end - first, *mask.shape[1:])
        depth, rows, columns = (-max(side, least) % step + max(side, least) - side for side in sides)
        return cls((first, end), (0, columns, 0, rows, depth // 2, depth - depth // 2))

    def fit(self, stack: Tensor, value: float) -> Tensor:
        """Cut the slices with brain out of a stack (S, H, W), and pad them: (D, H', W')."""
        return F.pad(stack[slice(*self.slices)], self.pads, value=value)

    def put_back(self, volume: Tensor, stack: Tensor) -> Tensor:
        """Return a stack with the slices that :meth:`fit` cut out replaced by those of a volume."""
        result, (first, end) = stack.clone(), self.slices
        below = self.pads[4]
        result[first:end] = volume[below : below + end - first, : stack.shape[1], : stack.shape[2]]
        return result


def _cube(corner: Sequence[int], side: int) -> tuple[slice, ...]:
    return tuple(slice(first, first + side) for first in corner)


def _notice(on_batch: OnWindows | None, before: int, of: int) -> Callable[[int], None]:
    """Count cubes over all timesteps and draws."""

    def notice(done: int) -> None:
        if on_batch is not None:
            on_batch(before + done, of)

    return notice
