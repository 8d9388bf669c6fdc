"""A short training of some parameters of a trained network, stopped when held-out slices stop improving."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from maediff.config import Config
from maediff.data.slices import SliceSet
from maediff.errors import MAEDiffError
from maediff.hardware import use_bf16
from maediff.methods.base import Method
from maediff.training.rehearsal import Rehearsal
from maediff.training.shares import Shares, share_count
from maediff.training.stream import Sample, SampleStream

log = logging.getLogger(__name__)
_VALIDATION_SAMPLES = 64


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        max_steps: Most steps.
        lr: Learning rate of AdamW, constant.
        every: Steps between two validations.
        patience: Validations without improvement before stopping.
    """

    max_steps: int = 400
    lr: float = 1e-3
    every: int = 25
    patience: int = 4


@dataclass(frozen=True)
class Tuned:
    """Outcome of a short training.

    Attributes:
        steps: Steps done.
        best_step: Step of the parameters that were kept; 0 for the initial ones.
        loss_before: Validation loss at the start.
        loss_after: Validation loss of the parameters that were kept.
    """

    steps: int
    best_step: int
    loss_before: float
    loss_after: float


def tune(
    network: Method,
    parameters: Sequence[nn.Parameter],
    data: tuple[SliceSet, SliceSet],
    config: Config,
    schedule: Schedule,
    *,
    rehearsal: Rehearsal | None = None,
    on_step: Callable[[int, float | None], None] | None = None,
) -> Tuned:
    """Train some parameters of a network in place, and keep those with the lowest validation loss.

    Sample k depends only on `train.seed` and k, as in a full training; on one device the result is reproducible.

    Args:
        network: A trained method, on its device.
        parameters: Parameters to train; all others should be frozen.
        data: Healthy slices for training, and slices of other subjects that decide when to stop.
        config: Configuration of the network, for samples and losses.
        schedule: How long and how fast.
        rehearsal: Targets that keep the network from forgetting; None: those of the samples.
        on_step: Called with each step, and the validation loss if there is a new one.

    Raises:
        MAEDiffError: The loss is not finite.
    """
    network.learns_statistics = False  # buffers are the base's: an adapter does not hold them
    batch, device = config.train.batch_size, parameters[0].device
    half = partial(torch.autocast, device.type, torch.bfloat16, enabled=use_bf16(device, config.train.precision))

    def losses(sample: Sample) -> tuple[Tensor, Tensor]:
        with half():
            return network.losses(sample)

    def validate() -> float:
        with half():
            return _validation_loss(network, data[1], config, rehearsal)

    stream = SampleStream(data[0], config, schedule.max_steps * batch, augmented=True)
    optimizer = torch.optim.AdamW(parameters, schedule.lr, weight_decay=0.0)
    before = best = validate()
    kept, best_step, step = copy.deepcopy([value.data for value in parameters]), 0, 0
    with Shares(losses, parameters, share_count(network, device, batch)) as shares:
        for step, sample in enumerate(DataLoader(stream, batch), start=1):
            network.train()
            optimizer.zero_grad()
            with half():
                targeted = _targeted(network, sample, rehearsal, step)
            loss, _ = shares.backward(targeted, auxiliary_weight=config.model.mae_loss_weight)
            if not bool(torch.isfinite(loss)):
                raise MAEDiffError(
                    f"the loss is {float(loss)} at step {step}; use a lower learning rate ({schedule.lr:g})"
                )
            nn.utils.clip_grad_norm_(parameters, config.train.grad_clip)
            optimizer.step()
            now = None
            if step % schedule.every == 0 or step == schedule.max_steps:
                now = validate()
                if now < best:
                    best, best_step, kept = now, step, copy.deepcopy([value.data for value in parameters])
            if on_step is not None:
                on_step(step, now)
            if step - best_step >= schedule.patience * schedule.every:
                break
    for value, data_kept in zip(parameters, kept, strict=True):
        value.data.copy_(data_kept)
    network.eval()
    log.info("%d steps, validation loss %.5f -> %.5f at step %d", step, before, best, best_step)
    return Tuned(step, best_step, before, best)


def _targeted(network: Method, sample: Sample, rehearsal: Rehearsal | None, number: int) -> Sample:
    """Move a batch to the network's device, and give it the targets to learn."""
    device = next(network.parameters()).device
    batch = {name: value.to(device) for name, value in sample.items()}
    return rehearsal(batch, number) if rehearsal else batch


@torch.no_grad()
def _validation_loss(network: Method, slices: SliceSet, config: Config, rehearsal: Rehearsal | None) -> float:
    """Measure the loss on fixed samples, as a training does."""
    network.eval()
    stream = SampleStream(slices, config, _VALIDATION_SAMPLES, augmented=False)
    total = 0.0
    for number, batch in enumerate(DataLoader(stream, config.train.batch_size), start=1):
        total += float(network.losses(_targeted(network, batch, rehearsal, -number))[0]) * len(batch["t"])
    return total / _VALIDATION_SAMPLES
