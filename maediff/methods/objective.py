"""Shared parts of the diffusion models: noising a batch, its loss, and the sampler's timesteps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from maediff import diffusion
from maediff.config import DiffusionConfig, TrainConfig

VISIBLE_LESION = 0.1
"""Change of a pixel, working units, from which on it counts as part of a pseudo-lesion."""


class Noised(NamedTuple):
    """A partially noised batch: image (B, C, H, W), where it is noised, the image to return, and both levels.

    Neighbouring slices come behind the C channels.
    """

    image: Tensor
    mask: Tensor
    clean: Tensor
    abar_t: Tensor
    abar_s: Tensor

    def own(self, channels: int) -> Noised:
        """Leave out the neighbours: keep the first channels, which are reconstructed."""
        return self._replace(image=self.image[:, :channels], clean=self.clean[:, :channels])


def perturb(batch: Mapping[str, Tensor], mask: Tensor, abar: Tensor) -> Noised:
    """Noise a batch inside a mask (B, 1, H, W), each image to its own timestep."""
    clean, t = batch["clean"], batch["t"]
    abar_t, abar_s = diffusion.level(abar, t, clean), diffusion.level(abar, t - 1, clean)
    return Noised(diffusion.partially_noise(batch["image"], batch["noise"], mask, abar_t), mask, clean, abar_t, abar_s)


def read_output(output: Tensor, image: Tensor, *, skip: bool, gated: bool) -> tuple[Tensor, Tensor | None]:
    """Read the prediction, and the gate's logits, from the output of a U-Net.

    Args:
        output: (B, C, H, W), or (B, 2C, H, W) with a gate: the difference, then the logits.
        image: (B, C, H, W), input of the network.
        skip: `model.input_skip`: the output is the change of the input.
        gated: `model.gate`: the change is a share from 0 to 1 times a difference. [ours]
    """
    gate = None
    if gated:
        output, gate = output.chunk(2, 1)
        output = output * torch.sigmoid(gate)
    return output + image if skip else output, gate


def estimate_of(kind: DiffusionConfig, prediction: Tensor, noised: Noised) -> Tensor:
    """Turn a prediction into the estimate of the clean image."""
    return diffusion.x0_from(kind.objective, prediction, noised.image, noised.abar_t, noised.abar_s)


def denoising_loss(
    kind: DiffusionConfig,
    prediction: Tensor,
    noised: Noised,
    image: Tensor,
    lesion_weight: float,
    *,
    outside_weight: float = 0.0,
) -> Tensor:
    """Compute the loss of a prediction inside the mask, and with another weight in the rest of the brain.

    `lesion_weight` adds the error inside pseudo-lesions, in which a small lesion counts as much as a large one: in the
    average over the patch a spot of ten pixels goes unnoticed. `outside_weight` lets the loss see the whole brain: the
    window decides what is noised, not what is learned. [ours]

    Args:
        kind: Objective and loss.
        prediction: (B, C, H, W) float32.
        noised: Input of the network.
        image: The image before noising, pseudo-lesions included.
        lesion_weight: `train.lesion_weight`.
        outside_weight: `train.outside_weight`.
    """
    if kind.loss == "simple":
        wanted = diffusion.target(kind.objective, noised.image, noised.clean, noised.abar_t, noised.abar_s)
        return diffusion.simple_loss(prediction, wanted, noised.mask)
    estimate = estimate_of(kind, prediction, noised)
    norm = kind.loss.removeprefix("x0_")
    where = loss_region(noised, outside_weight)
    loss = diffusion.x0_loss(estimate, noised.clean, where, norm)
    if lesion_weight:
        lesion = where * ((image - noised.clean).abs() > VISIBLE_LESION)
        loss = loss + lesion_weight * diffusion.x0_loss(estimate, noised.clean, lesion, norm)
    return loss


def gate_loss(logits: Tensor, noised: Noised, image: Tensor, train: TrainConfig) -> Tensor:
    """Compute the cross-entropy between the gate and the visible pseudo-lesions, weighted like the diffusion loss.

    The squared error of a faint or small lesion is close to zero, and teaches its place only late. [ours]

    Args:
        logits: (B, C, H, W).
        noised: Input of the network.
        image: The image before noising, pseudo-lesions included.
        train: Weights of pseudo-lesions and of pixels outside the window.
    """
    seen = (image - noised.clean).abs() > VISIBLE_LESION
    entropy = functional.binary_cross_entropy_with_logits(logits, seen.float(), reduction="none")
    where = loss_region(noised, train.outside_weight)
    return diffusion.patch_mean(entropy, where) + train.lesion_weight * diffusion.patch_mean(entropy, where * seen)


def loss_region(noised: Noised, outside_weight: float) -> Tensor:
    """Weigh pixels (B, 1, H, W): 1 inside the mask, `outside_weight` in the rest of the brain."""
    if not outside_weight:
        return noised.mask
    brain = (noised.clean > -1).any(1, keepdim=True)
    return noised.mask + outside_weight * (1 - noised.mask) * brain


def sampler_times(kind: DiffusionConfig, t: int) -> list[int]:
    """List the timesteps of the sampler from t to 0."""
    if kind.sampler == "single_step":
        return [t, 0]
    return diffusion.descend(t, kind.sampler_steps if kind.sampler == "ddim" else t)


def whole(images: Tensor) -> Tensor:
    """Make the mask of methods that noise the whole slice: ones (B, 1, H, W)."""
    return torch.ones_like(images[:, :1])
