"""The methods that MAEDiff is compared with, and the one place that builds a network from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from maediff.config import UNTRAINED, Config
from maediff.models.baselines.autoencoders import Autoencoder, DenoisingAutoencoder
from maediff.models.baselines.base import Draw, SlicePeer
from maediff.models.baselines.ddpm import DDPM, ConditionedDDPM
from maediff.models.baselines.latent import LatentDiffusion
from maediff.models.baselines.pddpm import PatchedDDPM
from maediff.models.baselines.stitch import AutoDDPM
from maediff.models.baselines.untrained import Untrained
from maediff.models.reconstructor import Reconstructor

__all__ = ["Draw", "PatchedDDPM", "SlicePeer", "Untrained", "build_network"]

_BUILDERS: dict[str, Callable[[Config], nn.Module]] = {
    "maediff": lambda config: Reconstructor(config.model, config.partition.cell),
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
