"""Divide a batch among the cores: each computes the gradient of its share in a thread of its own.

The threads of one operator wait for each other at its end. A training step has thousands of small operators, so that
two threads which share an operator gain little, and lose where other work holds one of their cores. Here threads meet
once a step, as the processes of distributed training do. [ours]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn

from maediff.methods.base import Method

Batch = dict[str, Tensor]
Gradients = tuple[Tensor | None, ...]


def share_count(network: Method, device: torch.device, batch_size: int) -> int:
    """Choose into how many shares a batch is divided: one per thread that torch may use on a CPU, else one."""
    if device.type != "cpu" or not network.divisible:
        return 1
    return min(torch.get_num_threads(), batch_size)


class Shares:
    """Threads that compute gradients on the CPU, one core each.

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
        self.losses = losses
        self.parameters = parameters
        self.count = max(1, count)
        self.pool = ThreadPoolExecutor(self.count, "share", partial(torch.set_num_threads, 1))

    def __enter__(self) -> Shares:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown()

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
        parts = _divided(batch, min(self.count, total))
        if len(parts) == 1:
            found = [gradients_of(batch)]
        else:
            with _one_thread():
                found = list(self.pool.map(gradients_of, parts))
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let the threads of matrix products, whose number all threads of a process share, be one for each of them."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _divided(batch: Batch, count: int) -> list[Batch]:
    """Divide the tensors of a batch into parts of nearly equal length."""
    divided = {name: value.tensor_split(count) for name, value in batch.items()}
    return [{name: parts[index] for name, parts in divided.items()} for index in range(count)]
