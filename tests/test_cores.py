"""Threads side by side: results in order, one core each, and errors passed on."""

from __future__ import annotations

import threading

import pytest
import torch

from maediff.cores import Cores, core_count


def test_results_are_in_order_and_each_thread_has_one_core():
    together = threading.Barrier(3, timeout=30)  # passed only if three threads are there at the same time

    def work(item):
        together.wait()
        return item, torch.get_num_threads(), threading.current_thread()

    with Cores(3) as cores:
        found = cores.map(work, ["a", "b", "c"])
    assert [item for item, _, _ in found] == ["a", "b", "c"]
    assert {count for _, count, _ in found} == {1}
    assert len({thread for _, _, thread in found}) == 3


def test_threads_of_torch_are_as_before_also_after_an_error():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with Cores(2) as cores:
            assert cores.map(lambda _: torch.get_num_threads(), [0]) == [2]  # a single item has all of them
            with pytest.raises(ZeroDivisionError):
                cores.map(lambda item: 1 / item, [1, 0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_only_a_cpu_is_shared_among_threads():
    assert core_count(torch.device("cpu")) == torch.get_num_threads()
    assert core_count(torch.device("meta")) == 1
