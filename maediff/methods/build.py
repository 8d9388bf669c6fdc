"""The one place that builds a method from a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from maediff.config import UNTRAINED, Config
from maediff.errors import ConfigError
from maediff.methods.autoddpm import AutoDDPM
from maediff.methods.autoencoders import Autoencoder, DenoisingAutoencoder, VariationalAutoencoder
from maediff.methods.base import Anomalies, Method, ScanBaseline
from maediff.methods.conditioned_latent_diffusion import ConditionedLatentDiffusion
from maediff.methods.ddpm import DDPM, ConditionedDDPM
from maediff.methods.disyre import DISYRE
from maediff.methods.intensity import Intensity
from maediff.methods.latent_diffusion import LatentDiffusion
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.methods.pddpm import PatchedDDPM
from maediff.methods.volumetric import VolumetricReconstructor
from maediff.methods.zscore import ZScore
from maediff.system import memory_bytes

_TRAINED: dict[str, type[Method]] = {
    "maediff": Reconstructor,
    "volumetric": VolumetricReconstructor,
    "ae": Autoencoder,
    "vae": VariationalAutoencoder,
    "dae": DenoisingAutoencoder,
    "ddpm": DDPM,
    "pddpm": PatchedDDPM,
    "cddpm": ConditionedDDPM,
    "latent_diffusion": LatentDiffusion,
    "conditioned_latent_diffusion": ConditionedLatentDiffusion,
    "autoddpm": AutoDDPM,
    "disyre": DISYRE,
}


def build_network(config: Config, weights: Mapping[str, Tensor] | None = None) -> Method:
    """Build `config.method`, with random weights.

    Args:
        config: Configuration.
        weights: Of a model folder; the statistics of a baseline without training have the shapes that they have there.
    """
    if config.method in UNTRAINED:
        return build_scan_baseline(config, weights)
    return _TRAINED[config.method](config)


def build_scan_baseline(config: Config, weights: Mapping[str, Tensor] | None = None) -> ScanBaseline:
    """Build a baseline without training, see :func:`build_network`."""
    return Intensity() if config.method == "intensity" else ZScore(weights or {})


def own_anomalies(config: Config) -> Anomalies | None:
    """Return the anomalies that `config.method` brings for its training slices; None if it brings none."""
    return _TRAINED[config.method].anomalies


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
    """Return the shapes of a trained method's tensors without allocating them.

    Args:
        config: Configuration of a method with a network.
    """
    with torch.device("meta"):
        state = _TRAINED[config.method](config).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}
