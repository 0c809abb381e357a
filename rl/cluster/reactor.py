"""Waiting in one place: whatever the loop waits for, the answers of all workers are taken in meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

_TICK = 1.0


class Reactor:
    """Calls a handler for every answer that arrives. One thread, so no locks.

    Attributes:
        clock: seconds spent waiting. Time-outs are counted on it, so that a worker is not blamed for the time in
            which nobody listened.
        ticks: called about once a second while nothing arrives.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.ticks: list[Callable[[], None]] = []
        self._watched: dict[Any, Callable[[], None]] = {}

    def watch(self, answer: Any, handle: Callable[[], None]) -> None:
        """Calls ``handle`` whenever ``answer`` (an object or a stream of them) has something to read."""
        self._watched[answer] = handle

    def forget(self, answer: Any) -> None:
        self._watched.pop(answer, None)

    def run_until(self, done: Callable[[], bool]) -> None:
        """Takes answers in until ``done``. The handlers' errors come out here.

        Raises:
            RuntimeError: nothing is left that could make it so.
        """
        while not done():
            if not self._watched:
                raise RuntimeError("waiting for an answer that nobody was asked for")
            start = time.monotonic()
            ready, _ = ray.wait(list(self._watched), num_returns=1, timeout=_TICK)
            self.clock += time.monotonic() - start
            for answer in ready:
                # To the end of the queue, so that a busy stream does not hide the others.
                handle = self._watched[answer] = self._watched.pop(answer)
                handle()
            if not ready:
                for tick in self.ticks:
                    tick()
