"""Autoencoders: what a bottleneck, or training against coarse noise, leaves out is called anomalous."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.networks.nets import VarAutoEncoder
from torch import Tensor

from maediff.config import Config
from maediff.errors import InputError
from maediff.methods.base import Draw
from maediff.methods.folded_unet import FoldedUNet, padded, padded_shape, unet_multiple
from maediff.methods.whole_slices import WholeSliceMethod


class Autoencoder(WholeSliceMethod):
    """Reconstruct a slice from a small dense code (AE; after Baur et al. 2021).

    MONAI's `VarAutoEncoder` with the mean of the code and without the KL term, so that AE and VAE differ in nothing
    else. Loss: l1.

    Differences from Baur et al.: widths of `model.channels`, group norm, no dropout; slices that grow beyond
    `data.size` are refused, since a dense code fits one size only.
    """

    uses_timesteps = False
    variational = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.kl_weight = config.baselines.kl_weight
        self.latent = config.baselines.latent
        self.multiple = 2 ** len(model.channels)
        self.shape = padded_shape(config.data.size, self.multiple)
        self.net = VarAutoEncoder(
            spatial_dims=2,
            in_shape=(1, *self.shape),
            out_channels=1,
            latent_size=self.latent,
            channels=model.channels,
            strides=(2,) * len(model.channels),
            num_res_units=0,  # with some, MONAI normalises the single channel of the output
            norm=("group", {"num_groups": model.norm_groups}),
            use_sigmoid=False,
        )

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute l1, for the VAE plus the weighted KL divergence; nothing is auxiliary.

        The noise of the VAE's code is the sample's.
        """
        clean = batch["clean"]
        mean, log_variance = self._encode(padded(batch["image"], self.multiple))
        code, kl = mean, mean.new_zeros(())
        if self.variational:
            noise = batch["noise"].flatten(1)[:, : self.latent]
            code = mean + (0.5 * log_variance).exp() * noise
            divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).float().sum(1)
            kl = self.kl_weight * divergence.mean()
        loss = (self._decode(code, clean) - clean).abs().mean() + kl
        return loss, loss.new_zeros(())

    def reconstruct(self, images: Tensor, brain: Tensor, t: int, draw: Draw) -> Tensor:
        """Encode and decode; the code is its mean.

        Raises:
            InputError: Slices larger than the network's.
        """
        if images.shape[2:] != self.shape:
            raise InputError(
                f"this brain needs slices of {tuple(images.shape[2:])} pixels, but the network's dense code fits "
                f"{self.shape} only; train with a larger data.size, or with another method"
            )
        return self._decode(self._encode(images)[0], images)

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Do as MONAI's `encode_forward` does, which needs another memory layout."""
        features = self.net.intermediate(self.net.encode(images)).flatten(1)
        return self.net.mu(features), self.net.logvar(features)

    def _decode(self, code: Tensor, like: Tensor) -> Tensor:
        decoded: Tensor = self.net.decode_forward(code, use_sigmoid=False).float()
        return decoded[..., : like.shape[2], : like.shape[3]]


class VariationalAutoencoder(Autoencoder):
    """Draw the code from a distribution (VAE; after Baur et al. 2021).

    Loss: l1 plus `baselines.kl_weight` times the KL divergence.
    """

    variational = True


class DenoisingAutoencoder(WholeSliceMethod):
    """Take coarse noise away; at test time the scan goes in as it is (DAE; Kascenas et al. 2022).

    Noise on a grid 8 times coarser, of standard deviation `baselines.noise_std`, is added inside the brain; loss l2.
    The U-Net has skip connections, since blobs of noise, unlike lesions, cannot pass for anatomy.

    Differences from the original: the U-Net of the diffusion methods, told timestep 0, so that they differ in the task
    alone; one contrast; noise of 0.4 in [-1, 1] is their 0.2 in [0, 1]; brain pixels at the very lowest intensity count
    as background; the result outside the brain is the scan.
    """

    uses_timesteps = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.noise_std = config.baselines.noise_std
        self.multiple = unet_multiple(config.model)
        self.net = FoldedUNet(config.model)

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the squared error of the restored slice; nothing is auxiliary."""
        clean = batch["clean"]
        noisy = batch["image"] + self.noise_std * batch["noise"] * (clean > -1)
        loss = ((self._restored(noisy) - clean) ** 2).mean()
        return loss, loss.new_zeros(())

    def reconstruct(self, images: Tensor, brain: Tensor, t: int, draw: Draw) -> Tensor:
        """Restore the scan as if it were noisy."""
        return torch.where(brain, self._restored(images), images)

    def _restored(self, noisy: Tensor) -> Tensor:
        restored: Tensor = self.net(noisy, torch.zeros(len(noisy), device=noisy.device)).float()
        return restored
