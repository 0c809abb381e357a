"""One reward in its own thread, so that a hung one can be left behind."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dina.rewards.protocol import Parts, Score

Call = Callable[[], Any]


class ToldError(Exception):
    """A failure whose message already says what happened and where."""


@dataclass
class Outcome:
    """What a call gave: a value, or the exception it raised."""

    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0


class RewardWorker:
    """A daemon thread with an event loop: sync callables block it, async ones run on it from call to call."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name=f"reward-{name}", daemon=True).start()

    def submit(self, calls: Sequence[Call]) -> list[Future[Outcome]]:
        """Runs the calls one after another. One whose future is cancelled in time is never made."""
        futures: list[Future[Outcome]] = [Future() for _ in calls]
        asyncio.run_coroutine_threadsafe(_in_turn(calls, futures), self._loop)
        return futures

    def stop(self) -> None:
        """Ends the thread after the call in progress, however long that takes; does not wait."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        self._loop.close()


async def _in_turn(calls: Sequence[Call], futures: Sequence[Future[Outcome]]) -> None:
    for call, future in zip(calls, futures, strict=True):
        if future.set_running_or_notify_cancel():
            future.set_result(await _invoke(call))


async def _invoke(call: Call) -> Outcome:
    start = time.perf_counter()
    try:
        value = call()
        if inspect.isawaitable(value):
            value = await value
    except BaseException as error:  # sys.exit() in a reward must not end the thread
        return Outcome(error=error, seconds=time.perf_counter() - start)
    return Outcome(value=value, seconds=time.perf_counter() - start)


def read_entry(entry: Any) -> tuple[float | None, Parts]:
    """One entry of a reward's answer: its score, and its sub-scores.

    Raises:
        ValueError: it is a failure, with the reason in words.
    """
    if isinstance(entry, BaseException):
        raise ValueError(describe(entry))
    if isinstance(entry, Score):
        reason = {"reason": entry.reason} if entry.reason else {}
        return read_score(entry.value), {**entry.parts, **reason}
    if isinstance(entry, Mapping):
        if "score" not in entry:
            raise ValueError(f"returned a mapping without 'score': {dict(entry)!r:.60}")
        return read_score(entry["score"]), {key: entry[key] for key in entry if key != "score"}
    return read_score(entry), {}


def read_score(value: Any) -> float | None:
    """The number of an entry.

    Raises:
        ValueError: it is no finite number, with the reason in words.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"returned {value!r:.60}, which is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"returned {number}")
    return number


def describe(error: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    if isinstance(error, ToldError):
        return " ".join(str(error).split())[:300]
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return " ".join(words.split())[:300] + place
