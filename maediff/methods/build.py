"""The methods that MAEDiff is compared with, and the one place that builds a network from a configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from maediff.config import UNTRAINED, Config
from maediff.errors import ConfigError
from maediff.methods.autoddpm import AutoDDPM
from maediff.methods.autoencoders import Autoencoder, DenoisingAutoencoder
from maediff.methods.base import Draw, SlicePeer
from maediff.methods.ddpm import DDPM, ConditionedDDPM
from maediff.methods.latent_diffusion import LatentDiffusion
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.methods.pddpm import PatchedDDPM
from maediff.methods.untrained import Untrained
from maediff.system import memory_bytes

__all__ = ["Draw", "PatchedDDPM", "SlicePeer", "Untrained", "build_network", "check_trainable", "network_shapes"]

_BUILDERS: dict[str, Callable[[Config], nn.Module]] = {
    "maediff": lambda config: Reconstructor(config.model, config.partition.cell, config.data.channel_count),
    "ae": lambda config: Autoencoder(config, variational=False),
    "vae": lambda config: Autoencoder(config, variational=True),
    "dae": DenoisingAutoencoder,
    "ddpm": DDPM,
    "pddpm": PatchedDDPM,
    "cddpm": ConditionedDDPM,
    "latent_diffusion": LatentDiffusion,
    "autoddpm": AutoDDPM,
}


def build_network(config: Config, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build the network of `config.method`, with random weights.

    Args:
        config: Configuration.
        weights: Of a model folder; they tell the grid of a method without a network, whose statistics they are.
    """
    if config.method in UNTRAINED:
        return Untrained(weights or {})
    return _BUILDERS[config.method](config)


def check_trainable(config: Config) -> None:
    """Refuse what cannot be trained, or not on this machine, before any memory is taken for it.

    Raises:
        ConfigError: Weights, their average, gradients and both moments of AdamW need more than the machine's memory, or
            a setting that only calibration can make true.
    """
    if config.score.locations:
        raise ConfigError(
            "score.locations=true needs statistics of healthy scans, which a model gets after training: train with "
            "score.locations=false, then run `maediff calibrate --locations`"
        )
    if config.method in UNTRAINED:
        return
    count, there = sum(map(math.prod, network_shapes(config).values())), memory_bytes()
    needed = 5 * 4 * count
    if there is not None and needed > there:
        raise ConfigError(
            f"the network has {count:,} parameters; to train them takes {needed / 2**30:,.0f} GiB, this machine has "
            f"{there / 2**30:.0f}: choose smaller model.channels, model.mae_width or depths"
        )


def network_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Tell the shapes of a trained method's tensors without taking memory for them, whatever the sizes.

    Args:
        config: Configuration of a method with a network.
    """
    with torch.device("meta"):
        state = _BUILDERS[config.method](config).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}
