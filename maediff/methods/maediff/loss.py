"""The reconstructor's loss: the diffusion loss in the patch, and the MAE's own image against the slice there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from maediff import diffusion
from maediff.config import DiffusionConfig, TrainConfig
from maediff.methods.objective import denoising_loss, gate_loss, perturb


class Reconstruction(NamedTuple):
    """What a network of windows returns: the diffusion prediction, the MAE's own image, and the gate's logits.

    All are (B, C, H, W).
    """

    prediction: Tensor
    mae_image: Tensor | None
    gate: Tensor | None = None


def losses(
    network: Callable[..., Reconstruction],
    batch: Mapping[str, Tensor],
    abar: Tensor,
    kind: DiffusionConfig,
    train: TrainConfig,
) -> tuple[Tensor, Tensor]:
    """Noise the patch, reconstruct it, and compare. [paper]; the weights are [ours].

    Args:
        network: Called with the noised slice, its neighbours behind it, the patch's mask and the timesteps.
        batch: A sample of :class:`maediff.training.stream.SampleStream` per row.
        abar: Schedule table, see :func:`maediff.diffusion.schedule`.
        kind: Objective and loss.
        train: Weights of pseudo-lesions and of pixels outside the brain.

    Returns:
        The diffusion loss, and the mean absolute error of the MAE's image in the patch (0 without one); training adds
        them with weight `model.mae_loss_weight`.
    """
    noised = perturb(batch, batch["mask"], abar)
    prediction, mae_image, gate = network(noised.image, noised.mask, batch["t"])
    noised, image = noised.own(prediction.shape[1]), batch["image"][:, : prediction.shape[1]]
    loss = denoising_loss(
        kind,
        prediction.float(),
        noised,
        image,
        train.lesion_weight,
        outside_weight=train.outside_weight,
    )
    if gate is not None:
        loss = loss + train.gate_weight * gate_loss(gate.float(), noised, image, train)
    if mae_image is None:
        return loss, loss.new_zeros(())
    return loss, diffusion.x0_loss(mae_image.float(), noised.clean, noised.mask, "l1")
