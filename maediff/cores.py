"""Compute side by side on the cores of a CPU, a thread for each.

The threads of one operator wait for each other at its end. Networks have thousands of small operators, so that threads
which share each of them gain little on many cores, and lose where other work holds one of the cores. Threads with a
part of the data each wait once, when all parts are done. [ours]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Own = TypeVar("Own", bound="Cores")


def core_count(device: torch.device) -> int:
    """Choose how many threads compute side by side: as many as torch may use on a CPU, one for other devices."""
    return torch.get_num_threads() if device.type == "cpu" else 1


class Cores:
    """Threads that compute side by side, each on one core.

    What torch keeps for each thread, such as autocast and inference mode, is to be entered in the function that they
    call.

    Args:
        count: Number of threads.

    Example:
        >>> with Cores(2) as cores:
        ...     cores.map(lambda x: x + torch.get_num_threads(), [10, 20, 30])
        [11, 21, 31]
    """

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self.pool = ThreadPoolExecutor(self.count, "core", partial(torch.set_num_threads, 1))

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return the results for items in their order; a single item is computed here, on all threads of torch."""
        if len(items) == 1:
            return [function(items[0])]
        with one_thread():
            return list(self.pool.map(function, items))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch have one thread, for the time being: matrix products share their number in a whole process."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
