"""Stages overlap, order and errors do not change, and few items are at hand."""

from __future__ import annotations

import threading

import pytest

from maediff.inference.overlap import overlapped


def test_the_next_item_is_read_while_one_is_computed():
    read = {number: threading.Event() for number in range(5)}

    def compute(number):
        if number + 1 in read:
            assert read[number + 1].wait(20)  # would never come if reading waited for us
        return number

    def reading(number):
        read[number].set()
        return number

    assert list(overlapped(range(5), reading, compute, str)) == list("01234")


def test_an_item_is_written_while_the_next_is_computed():
    written = {number: threading.Event() for number in range(5)}

    def compute(number):
        if number:
            assert written[number - 1].wait(20)
        return number

    def write(number):
        written[number].set()
        return number

    assert list(overlapped(range(5), int, compute, write)) == list(range(5))


def test_few_items_are_at_hand_however_many_there_are():
    alive, most, lock = 0, 0, threading.Lock()

    def read(number):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return number

    def write(number):
        nonlocal alive
        with lock:
            alive -= 1
        return number

    assert list(overlapped(range(50), read, int, write)) == list(range(50))
    assert most <= 4


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_an_error_comes_where_its_item_does(stage):
    def fail(at):
        def step(number):
            if at == stage and number == 2:
                raise ValueError(stage)
            return number

        return step

    results = overlapped(range(5), fail("read"), fail("compute"), fail("write"))
    assert next(results) == 0
    with pytest.raises(ValueError, match=stage):
        list(results)
