"""Overlap three stages over many items: read ahead of and write behind the calling thread's computation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Written = TypeVar("Written")


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    compute: Callable[[Read], Computed],
    write: Callable[[Computed], Written],
) -> Iterator[Written]:
    """Yield ``write(compute(read(item)))`` for each item, in order.

    One item is read in a thread while the one before is computed here and the one before that is written in another
    thread. At most three items are in memory, whatever their number. An exception of any
    stage is raised where its item's turn comes.

    Example:
        >>> list(overlapped([1, 2, 3], lambda x: x + 1, lambda x: x * 10, str))
        ['20', '30', '40']
    """
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        behind: Future[Written] | None = None
        for ahead in _one_ahead(items, read, reader):
            computed = compute(ahead.result())
            del ahead  # free what was read before the next item is computed
            if behind is not None:
                yield behind.result()
            behind = writer.submit(write, computed)
            del computed
        if behind is not None:
            yield behind.result()


def _one_ahead(
    items: Iterable[Item], read: Callable[[Item], Read], reader: ThreadPoolExecutor
) -> Iterator[Future[Read]]:
    """Yield the future of each item once the next one is submitted."""
    waiting: list[Future[Read]] = []
    for item in items:
        waiting.append(reader.submit(read, item))
        if len(waiting) == 2:
            yield waiting.pop(0)
    while waiting:
        yield waiting.pop(0)
