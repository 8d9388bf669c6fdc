"""Speed of a training, relative to the machine's peak, and the time spent waiting for data."""

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
"""Least number of steps; shorter runs would only measure their warm-up."""


@dataclass(frozen=True)
class Pace:
    """Speed of a training, all processes together.

    Attributes:
        images_per_second: Over the whole run, validations and checkpoints included.
        waiting: Share of the time that the device waited for data, 0 to 1; it was busy for the rest.
        share_of_ceiling: Operations of the network per second, as a share of this machine's matrix product in the
            precision of the training; None for runs that are too short.
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
    """Measure the time of a run, and the part of it spent waiting for data.

    The loop waits for the device in each step, so the device is idle while the loop waits for data.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waited = 0.0

    def watch(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches and measure the wait for each."""
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

    def pace(self, images: int, processes: int, device: torch.device, step: Callable[[], None], *, half: bool) -> Pace:
        """Compute the speed of a run.

        Args:
            images: Images trained on by all processes.
            processes: Number of processes, with one device each.
            device: Where this one computes.
            step: Runs one image forward and backward, to count its operations.
            half: Whether the precision is bf16 or fp16, whose peaks are the same.
        """
        seconds = self.seconds
        speed, share = images / seconds, None
        if seconds >= LEAST_SECONDS:
            with FlopCounterMode(display=False) as counter:
                step()
            top = matmul_flops(device, torch.bfloat16 if half else torch.float32)
            share = speed / processes * counter.get_total_flops() / top
        return Pace(speed, self.waited / seconds, share)
