"""How fast a training was, against what the machine can do and against what its data let it do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from maediff.hardware import matmul_flops

Item = TypeVar("Item")
LEAST_SECONDS = 10.0
"""Shorter runs measure their warm-up."""


@dataclass(frozen=True)
class Pace:
    """Speed of a training, all processes together.

    Attributes:
        images_per_second: Over the whole run, validations and checkpoints included.
        waiting: Share of the time in which the device waited for data, 0 to 1; the rest of the time it was busy.
        share_of_ceiling: Operations of the network a second, as a share of this machine's matrix product in the
            training's precision; None for runs too short to tell.
    """

    images_per_second: float
    waiting: float
    share_of_ceiling: float | None

    def __str__(self) -> str:
        ceiling = (
            "" if self.share_of_ceiling is None else f", {self.share_of_ceiling:.0%} of the matrix product's speed"
        )
        return f"{self.images_per_second:.1f} images/s{ceiling}; waited for data {self.waiting:.1%} of the time"


class Stopwatch:
    """Time a run, and in it the time spent waiting for data.

    The loop waits for the device in each step, so that the device is idle while the loop waits for data.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waited = 0.0

    def watch(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches and time how long each lets itself be waited for."""
        source = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.waited += time.perf_counter() - before
            yield batch

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.start

    def pace(self, images: int, processes: int, device: torch.device, step: Callable[[], None], *, bf16: bool) -> Pace:
        """Sum up a run.

        Args:
            images: Images trained on by all processes.
            processes: How many, of one device each.
            device: Where this one computes.
            step: Passes one image forward and back, for its operations to be counted.
            bf16: The precision.
        """
        seconds = self.seconds
        speed, share = images / seconds, None
        if seconds >= LEAST_SECONDS:
            with FlopCounterMode(display=False) as counter:
                step()
            top = matmul_flops(device, torch.bfloat16 if bf16 else torch.float32)
            share = speed / processes * counter.get_total_flops() / top
        return Pace(speed, self.waited / seconds, share)
