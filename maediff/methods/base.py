"""The protocol of methods, which training, inference and evaluation use.

A method trains on the samples of :class:`maediff.training.stream.SampleStream` through :meth:`Method.losses`, and
makes slices healthy through the engine that :meth:`Method.engine` returns. A baseline without training derives from
:class:`ScanBaseline` instead and maps a whole scan at once. To add a baseline: write a file here, then name it in
:mod:`maediff.methods.build` and in `maediff.config.schema.Method`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, NamedTuple, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from maediff.config import Config, ScoreConfig
from maediff.errors import ConfigError
from maediff.scoring import Sign, channel_residual
from maediff.typing import BoolArray, FloatArray, FloatMap
from maediff.volume import Volume

Key = tuple[object, ...]
"""Seed of a scan's noise besides the slice index, such as (run seed, case)."""
OnWindows = Callable[[int, int], None]
"""Progress callback, called with (windows done, windows in total)."""


class Healthy(NamedTuple):
    """Healthy reconstruction of a stack of slices, both of its shape, float32 on the CPU.

    `deviation` is the standard deviation over timesteps and noise draws; None if there is only one. `passes` are all
    reconstructions (P, S, H, W) of a method that averages their residuals; None if it averages reconstructions.
    """

    mean: Tensor
    deviation: Tensor | None
    passes: Tensor | None = None

    def residual(self, slices: FloatArray, sign: Sign) -> FloatMap:
        """Compare working slices with their healthy version (S, H, W), see :func:`maediff.scoring.channel_residual`.

        Channels of the slices that were not reconstructed come last and are left out.
        """
        if slices.ndim == 4:
            slices = slices[:, 0] if self.mean.ndim == 3 else slices[:, : self.mean.shape[1]]
        if self.passes is None:
            return channel_residual(slices, self.mean.numpy(), sign)
        values: FloatMap = np.mean([channel_residual(slices, one.numpy(), sign) for one in self.passes], axis=0)
        return values


class Engine(Protocol):
    """Reconstruct the healthy version of a scan's slices."""

    def __call__(self, slices: Tensor, mask: Tensor, key: Key, on_batch: OnWindows | None = None) -> Healthy:
        """Reconstruct slices (S, H, W) with brain (S, H, W); the noise depends on the key and the slice's index."""
        ...


class Anomalies(Protocol):
    """Insert an anomaly into a healthy training slice."""

    def __call__(
        self,
        clean: Tensor,
        brain: Tensor,
        foreign: tuple[Tensor, Tensor],
        rng: torch.Generator,
        *,
        severity: float,
        clip: float,
    ) -> Tensor:
        """Return the slice with an anomaly (1, H, W).

        Args:
            clean: Healthy slice (1, H, W), -1 outside the brain.
            brain: (1, H, W) bool.
            foreign: Another healthy slice and its brain, of the same shapes.
            rng: Source of randomness.
            severity: 0 to 1, the timestep as a share of the last one; 0 leaves the slice unchanged.
            clip: Upper limit of intensities.
        """
        ...


class Method(nn.Module, ABC):
    """A network with its loss and its engine.

    Attributes:
        uses_every_parameter: Whether each training step gives every parameter a gradient, so that several processes
            need not look for those without.
        divisible: Whether the losses of a batch are averages over its samples and change nothing in the network, so
            that parts of a batch may be computed at the same time.
        learns_statistics: Whether training also updates running statistics (buffers); an adapter holds none.
        channels: C, channels of a slice that it reconstructs.
        neighbour_channels: K, channels of neighbouring slices that it sees behind those, see
            :mod:`maediff.methods.neighbours`.
        anomalies: What is inserted into every training slice instead of pseudo-lesions; None if the method brings no
            anomalies of its own.
        guide_channels: What each of its side networks sees, as indices of channels; empty without side networks.
    """

    anomalies: ClassVar[Anomalies | None] = None
    uses_every_parameter: bool = False
    divisible: ClassVar[bool] = True
    learns_statistics: bool = True
    channels: int = 1
    neighbour_channels: int = 0
    guide_channels: tuple[tuple[int, ...], ...] = ()

    @abstractmethod
    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss and an auxiliary loss (weighted by `model.mae_loss_weight`; 0 if there is none)."""

    @abstractmethod
    def engine(self, config: Config, device: torch.device, *, bf16: bool) -> Engine:
        """Return the engine that reconstructs healthy slices with this network.

        Args:
            config: The configuration it was trained with, overrides included.
            device: Where the network is.
            bf16: Run the network under bf16 autocast.
        """

    def features(self, image: Tensor, mask: Tensor) -> Tensor | None:
        """Compute what the network needs once per window, whatever the timestep; None if there is nothing.

        Args:
            image: (B, C + K, H, W).
            mask: (B, 1, H, W), 1 inside the window.
        """
        return None

    def guides(self, images: Tensor) -> Tensor | None:
        """Compute what side networks see of slices (B, C + further channels, H, W); None if there are none."""
        return None

    def scan_maps(self, volume: Volume, brain: BoolArray, score: ScoreConfig) -> tuple[FloatMap, FloatMap] | None:
        """Return the anomaly map and a healthy scan if the method makes them without slices; None if it does not.

        Args:
            volume: The scan.
            brain: Its brain (X, Y, Z).
            score: Sign and filters of the map.
        """
        return None


class ScanBaseline(Method):
    """A baseline without training: it may collect statistics of healthy scans, and maps a scan at once."""

    @abstractmethod
    def fit(self, scans: Iterable[tuple[Volume, BoolArray]]) -> None:
        """Learn from healthy scans, each with its brain mask."""

    @abstractmethod
    def scan_maps(self, volume: Volume, brain: BoolArray, score: ScoreConfig) -> tuple[FloatMap, FloatMap]:
        """Return the anomaly map and what a healthy scan would look like, on the scan's own voxels.

        Outside the brain the healthy scan is the scan itself.

        Raises:
            InputError: The brain has no contrast.
        """

    def losses(self, batch: Mapping[str, Tensor]) -> NoReturn:
        """Refuse: there is no network to train."""
        raise ConfigError(f"{type(self).__name__} has no network to train")

    def engine(self, config: Config, device: torch.device, *, bf16: bool) -> NoReturn:
        """Refuse: there is no network that reconstructs slices."""
        raise ConfigError(f"method {config.method!r} has no network that reconstructs slices; choose another method")


class Draw(Protocol):
    """Draw a noise field (B, C + K, H, W) for a batch, each slice from its own key and the given names."""

    def __call__(self, *names: object) -> Tensor:
        """Draw."""
        ...
