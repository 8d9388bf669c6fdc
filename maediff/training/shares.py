"""Divide a batch among the cores of a CPU: each computes the gradient of its share. [ours]"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from maediff.cores import Cores, core_count
from maediff.methods.base import Method

Batch = dict[str, Tensor]
Gradients = tuple[Tensor | None, ...]


def share_count(network: Method, device: torch.device, batch_size: int) -> int:
    """Choose into how many shares a batch is divided: one per core of a CPU if the method's loss can be divided."""
    return min(core_count(device), batch_size) if network.divisible else 1


class Shares(Cores):
    """Threads that compute gradients side by side.

    Args:
        losses: Returns the loss and the auxiliary loss of a batch, both averages over its samples.
        parameters: Parameters to differentiate by.
        count: Number of threads.

    Example:
        >>> factor = nn.Parameter(torch.tensor(1.0))
        >>> with Shares(lambda batch: ((factor * batch["x"]).mean(), torch.zeros(())), [factor], 2) as shares:
        ...     loss, auxiliary = shares.backward({"x": torch.tensor([1.0, 2.0, 6.0])})
        >>> factor.grad
        tensor(3.)
    """

    def __init__(
        self, losses: Callable[[Batch], tuple[Tensor, Tensor]], parameters: Sequence[nn.Parameter], count: int
    ) -> None:
        super().__init__(count)
        self.losses = losses
        self.parameters = parameters

    def backward(self, batch: Batch, *, weight: float = 1.0, auxiliary_weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """Add the gradient of ``weight * (loss + auxiliary_weight * auxiliary)`` to those of the parameters.

        Shares are added in their order, so that a number of threads always gives the same sum.

        Args:
            batch: Tensors (B, …).
            weight: Factor of the gradient.
            auxiliary_weight: Weight of the auxiliary loss.

        Returns:
            Loss and auxiliary loss of the whole batch, without gradients.
        """
        total = len(next(iter(batch.values())))
        gradients_of = partial(self._gradients, total=total, weight=weight, auxiliary_weight=auxiliary_weight)
        found = self.map(gradients_of, _divided(batch, min(self.count, total)))
        for _, gradients in found:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        loss, auxiliary = torch.stack([losses for losses, _ in found]).sum(0)
        return loss, auxiliary

    def _gradients(
        self, part: Batch, *, total: int, weight: float, auxiliary_weight: float
    ) -> tuple[Tensor, Gradients]:
        share = len(next(iter(part.values()))) / total
        loss, auxiliary = self.losses(part)
        whole = weight * share * (loss + auxiliary_weight * auxiliary)
        gradients = torch.autograd.grad(whole, self.parameters, allow_unused=True)
        return share * torch.stack([loss.detach(), auxiliary.detach()]), gradients


def _divided(batch: Batch, count: int) -> list[Batch]:
    """Divide the tensors of a batch into parts of nearly equal length."""
    divided = {name: value.tensor_split(count) for name, value in batch.items()}
    return [{name: parts[index] for name, parts in divided.items()} for index in range(count)]
