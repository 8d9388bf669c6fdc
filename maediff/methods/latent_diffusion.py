"""Diffusion in the latent space of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from maediff import diffusion
from maediff.config import Config
from maediff.methods.base import Draw
from maediff.methods.folded_unet import FoldedUNet, padded
from maediff.methods.objective import denoising_loss, perturb, sampler_times, whole
from maediff.methods.whole_slices import WholeSliceMethod

_KL_WEIGHT = 1e-6
_MOMENTUM = 0.05


class LatentDiffusion(WholeSliceMethod):
    """Encode, noise the latent image to t, walk back, decode (Rombach et al. 2022; Pinaya et al. 2022 for brains).

    MONAI's `AutoencoderKL` (l1 and a KL term of weight 1e-6) and the diffusion U-Net on its latent image, scaled
    by a running standard deviation.

    Differences from the originals: both are trained at once, the diffusion on latent images that pass no gradient back,
    instead of one after the other; no adversarial and no perceptual loss; no transformer (Pinaya et al.), but the
    partial noising of AnoDDPM in the latent space, by DDIM or a single step.
    """

    divisible = False  # the deviation of a batch
    scale: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, levels = config.model, config.baselines.latent_levels
        self.kind, self.skip = config.diffusion, model.input_skip
        self.has_lesions = config.lesions.share > 0
        self.abar = diffusion.schedule(config.diffusion.schedule, config.diffusion.timesteps)
        self.fold = 2**levels
        self.multiple = self.fold * 2 ** (len(model.channels) - 1)
        self.autoencoder = AutoencoderKL(
            spatial_dims=2,
            num_res_blocks=(model.num_res_blocks,) * (levels + 1),
            channels=[model.channels[min(depth, len(model.channels) - 1)] for depth in range(levels + 1)],
            attention_levels=(False,) * (levels + 1),
            latent_channels=config.baselines.latent_channels,
            norm_num_groups=model.norm_groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.net = FoldedUNet(model, (config.baselines.latent_channels,) * 2, latent=True)
        self.register_buffer("scale", torch.ones(()))

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Add the autoencoder's loss and the diffusion loss of latent images; the second is :meth:`auxiliary`."""
        image, clean = (padded(batch[name], self.multiple) for name in ("image", "clean"))
        mean, sigma = self.autoencoder.encode(clean)
        mean, sigma = mean.float(), sigma.float()
        code = mean + sigma * _share(batch["noise"], 0, mean)
        kl = 0.5 * (mean**2 + sigma**2 - 1 - 2 * sigma.log()).sum((1, 2, 3)).mean()
        loss = (self.autoencoder.decode(code).float() - clean).abs().mean() + _KL_WEIGHT * kl
        latent = mean.detach()
        if self.training and self.learns_statistics:
            self.scale.lerp_(latent.std(), _MOMENTUM)
        with torch.no_grad():
            seen = self.autoencoder.encode(image)[0].float() if self.has_lesions else latent
        latents = {"clean": latent / self.scale, "image": seen / self.scale, "t": batch["t"]}
        noised = perturb({**latents, "noise": _share(batch["noise"], 1, mean)}, whole(mean), self.abar)
        hidden = self.hidden(batch, image)
        features = self.features(image, hidden)
        prediction = self.predict(noised.image, batch["t"], features)
        # a latent pixel counts if any pixel of its square is hidden
        learned = noised._replace(mask=F.max_pool2d(hidden, self.fold))
        loss = loss + denoising_loss(self.kind, prediction, learned, noised.clean, 0.0)
        return loss, self.auxiliary(features, clean, hidden)

    def hidden(self, batch: Mapping[str, Tensor], image: Tensor) -> Tensor:
        """Return the pixels (B, 1, H, W), 1 where the condition sees nothing and the diffusion loss counts: all."""
        return whole(image)

    def auxiliary(self, features: Tensor | None, clean: Tensor, hidden: Tensor) -> Tensor:
        """Return the auxiliary loss: 0."""
        return clean.new_zeros(())

    def reconstruct(self, images: Tensor, brain: Tensor, t: int, draw: Draw) -> Tensor:
        """Encode, noise to level t, sample back to 0 and decode."""
        latent = self.encoded(images)
        return self.decoded(self.walk(latent, t, draw, self.features(images, whole(images))))

    def encoded(self, images: Tensor) -> Tensor:
        """Encode images (B, 1, H, W) to latent images (B, L, H / fold, W / fold) of standard deviation about 1."""
        latent: Tensor = self.autoencoder.encode(images)[0].float() / self.scale
        return latent

    def decoded(self, latent: Tensor) -> Tensor:
        """Decode what :meth:`encoded` returns."""
        image: Tensor = self.autoencoder.decode(latent * self.scale).float()
        return image

    def walk(self, latent: Tensor, t: int, draw: Draw, features: Tensor | None) -> Tensor:
        """Noise latent images to level t and sample back to 0, under the condition of `features`."""
        x_t = diffusion.add_noise(latent, _share(draw(), 0, latent), self.abar[t].to(latent))

        def denoise(x: Tensor, step: int) -> Tensor:
            prediction = self.predict(x, torch.full((len(x),), step, device=x.device), features)
            abar_t, abar_s = self.abar[step].to(x), self.abar[step - 1].to(x)
            return diffusion.x0_from(self.kind.objective, prediction, x, abar_t, abar_s)

        def noise(step: int) -> Tensor:
            return _share(draw("ancestral", step), 0, latent)

        times = sampler_times(self.kind, t)
        ancestral = self.kind.sampler == "ancestral"
        return diffusion.sample(denoise, x_t, self.abar, times, noise if ancestral else None)

    def predict(self, x_t: Tensor, t: Tensor, features: Tensor | None) -> Tensor:
        """Run the latent U-Net on (B, L, h, w) at timesteps (B,); `features` are None without a condition."""
        prediction: Tensor = self.net(x_t, t, context=self.context(features, t)).float()
        return prediction + x_t if self.skip else prediction

    def context(self, features: Tensor | None, t: Tensor) -> Tensor | None:
        """Return the tokens (B, N, D) that the U-Net attends to at timesteps (B,); None without a condition."""
        return None


def _share(noise: Tensor, which: int, like: Tensor) -> Tensor:
    """Take one part of a noise field (B, 1, H, W) of independent pixels, in the shape of latent images."""
    size = like[0].numel()
    return noise.flatten(1)[:, which * size : (which + 1) * size].reshape(like.shape)
