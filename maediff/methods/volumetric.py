"""MAEDiff in three dimensions: cubes instead of squares, on a grid of equal spacing in all directions. [ours]

The paper works on slices, whose maps flicker from one slice to the next. Here the window is a cube, the cells of the
masked autoencoder are cubes, and the U-Net convolves in three dimensions and sees the whole brain. Everything else is
the paper's: the inside of the window is noised, the autoencoder sees the cells outside it, and the window slides.
Training volumes are drawn from label maps, see :mod:`maediff.heads.volume`; they may be smaller than a brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from maediff.config import Config
from maediff.cores import Cores, core_count
from maediff.diffusion.noise import generator, noise_field
from maediff.methods.base import Healthy, Key, OnWindows
from maediff.methods.maediff.layout import view_step
from maediff.methods.maediff.partition import blend_weight, window_grid, window_masks
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.methods.maediff.window import Seen, WindowEngine


class VolumetricReconstructor(Reconstructor):
    """The reconstructor of volumes (B, C, D, H, W); see :class:`~maediff.methods.maediff.reconstructor.Reconstructor`.

    It has no side networks, and sees neither neighbours, since all slices are there, nor the other hemisphere.
    """

    dims: ClassVar[int] = 3

    def engine(self, config: Config, device: torch.device, *, bf16: bool) -> CubeReconstructor:
        """Return the engine that slides the cube through the volume."""
        return CubeReconstructor(self, config, device, bf16=bf16)


class CubeReconstructor(WindowEngine):
    """Engine that reconstructs the healthy version of a stack of slices as one volume, cube after cube.

    Its arguments are those of :class:`~maediff.methods.maediff.window.WindowEngine`.
    """

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
        slices = slices.float()
        if not bool(mask.any()):
            return Healthy(*self.average(slices, key, lambda *_: slices, None))
        place = Place.around(mask, view_step(self.config), self.config.partition.window)
        volume = place.fit(slices, -1.0)
        corners = self._corners(place.fit(mask, False))

        def reconstruct(t: int, pass_key: Key, notice: OnWindows) -> Tensor:
            return place.put_back(self._reconstruct(volume, corners, t, pass_key, notice), slices)

        return Healthy(*self.average(slices, key, reconstruct, on_batch))

    def _corners(self, brain: Tensor) -> Tensor:
        """List the first voxels (N, 3) of the cubes that hold brain (D, H, W)."""
        side, stride = self.config.partition.window, self.config.partition.stride
        corners = window_grid(tuple(brain.shape), side, stride)
        held = [bool(brain[_cube(corner, side)].any()) for corner in corners.tolist()]
        return corners[torch.tensor(held)]

    def _reconstruct(self, volume: Tensor, corners: Tensor, t: int, key: Key, notice: OnWindows) -> Tensor:
        """Reconstruct all cubes at one timestep with one noise field, and blend them: (D, H, W)."""
        side, kind = self.config.partition.window, self.config.diffusion.noise
        shape = tuple(volume.shape)
        x0 = volume[None, None].to(self.device)
        noise = noise_field(kind, shape, generator(*key))[None].to(self.device)
        weight = blend_weight(side, self.config.infer.blend, dims=3)
        total, mass = torch.zeros_like(volume), torch.zeros_like(volume)

        def draw(name: object, step: int) -> Tensor:
            return noise_field(kind, shape, generator(*key, name, step))[None].to(self.device)

        @torch.inference_mode()
        def estimate_of(corner: Tensor) -> Tensor:
            window = window_masks(corner[None], side, shape).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                features = self.network.features(x0, window)
            return self.restore(Seen(x0, noise, window, features, None, None, draw), t)[0, 0].cpu()

        done, most = 0, self.config.infer.batch_size
        count = core_count(self.device)
        with Cores(count if most == "auto" else min(count, most)) as cores:
            for group in corners.split(cores.count):
                for corner, estimate in zip(group.tolist(), cores.map(estimate_of, list(group)), strict=True):
                    cube = _cube(corner, side)
                    total[cube] += weight * estimate[cube]
                    mass[cube] += weight
                done += len(group)
                notice(done, len(corners))
        return torch.where(mass > 0, total / mass.clamp(min=1e-12), volume)


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
