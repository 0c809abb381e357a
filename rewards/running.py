"""One reward at work on a batch: it is called, waited for, retried and, when it hangs, left behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from dina.rewards.batch import RewardBatch
from dina.rewards.protocol import Parts, Reward, RewardFailure, RewardSpec
from dina.rewards.registry import build_reward, parameters
from dina.rewards.worker import Outcome, RewardWorker, describe, read_entry

log = logging.getLogger(__name__)

IDLE_BATCHES = 5
"""A reward that applies to nothing in so many first batches is mentioned."""


class RunningReward:
    """One reward with its thread, the scores of the current batch, and its time-outs in a row."""

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self._reward: Reward | None = build_reward(spec)
        named, open_ended = parameters(self._reward)
        self.requires = [name for name, p in named.items() if p.default is p.empty]
        self.requires += [name for name in getattr(self._reward, "requires", ()) if name not in named]
        own_size = getattr(self._reward, "batch_size", None)
        self._batch_size = spec.batch_size or (own_size if isinstance(own_size, int) else None)
        self._accepted = None if open_ended else set(named)
        self._worker = RewardWorker(spec.label)
        self._idle_batches: int | None = 0
        self.timeouts = 0

    def start(self, batch: RewardBatch) -> None:
        """Begins to score the rows that the reward applies to."""
        n = len(batch.samples)
        self.batch = batch
        self.scores: list[float | None] = [None] * n
        self.parts: list[Parts | None] = [None] * n
        self.failures: list[RewardFailure] = []
        self.seconds = 0.0
        self.timed_out = False
        self._metrics: dict[str, list[float]] = {}
        self._deadline = time.monotonic() + self.spec.timeout
        rows = batch.applicable(self.requires, self.spec.tasks)
        size = self._batch_size or max(len(rows), 1)
        self._calls = self._submit([rows[at : at + size] for at in range(0, len(rows), size)])
        if n:
            self._notice_if_idle(bool(rows))

    def _notice_if_idle(self, applies: bool) -> None:
        """Says once that the reward may never apply. A batch can be part of a step, and hold prompts of one kind."""
        if self._idle_batches is None:
            return
        self._idle_batches = None if applies else self._idle_batches + 1
        if self._idle_batches == IDLE_BATCHES:
            log.warning(
                "reward %r applies to no sample of its first %d batches; it needs %s",
                self.spec.label,
                IDLE_BATCHES,
                ", ".join(self.requires),
            )

    def finish(self) -> None:
        """Waits for the scores, no longer than the time-out (twice that if rows are retried one by one)."""
        raised: list[int] = []
        for position, call in enumerate(self._calls):
            outcome = self._wait(call)
            if outcome is None:
                self.timeouts += 1
                later = [row for left in self._calls[position + 1 :] for row in left.rows]
                return self._fail(raised + later, "not scored: the time of the batch was up")
            if outcome.error is not None and len(call.rows) > 1:
                raised += call.rows
            else:
                self._take(call, outcome)
        if self._calls:
            self.timeouts = 0
        self._retry_one_by_one(raised)

    def logged(self) -> dict[str, float]:
        """Means of what the reward logged through ``log_metric``."""
        label = self.spec.label
        return {f"rewards/{label}/{name}": sum(v) / len(v) for name, v in self._metrics.items()}

    def close(self) -> None:
        self._worker.stop()
        close = getattr(self._reward, "close", None)
        if callable(close):
            close()

    def _retry_one_by_one(self, rows: list[int]) -> None:
        """One bad sample must not fail its neighbours. All retries together get one more time-out."""
        self._deadline = time.monotonic() + self.spec.timeout
        for position, call in enumerate(self._submit([[row] for row in rows])):
            outcome = self._wait(call)
            if outcome is None:
                return self._fail(rows[position + 1 :], "not retried: the batch raised and its time was up")
            self._take(call, outcome)

    def _submit(self, batches: Sequence[list[int]]) -> list[_Call]:
        """Begins one call per batch of rows, made one after another."""
        calls = [_Call(rows) for rows in batches]
        futures = self._worker.submit([partial(self._answer, call, self.batch) for call in calls])
        for call, future in zip(calls, futures, strict=True):
            call.future = future
        self._submitted = calls
        return calls

    def _answer(self, call: _Call, batch: RewardBatch) -> Any:
        """Runs in the worker's thread, and there sets a reward up anew whose last call was left behind."""
        if self._reward is None:
            self._reward = build_reward(self.spec)
        arguments = batch.arguments(call.rows, self._accepted)
        for name, callback in (("log_extra", call.log_extra), ("log_metric", call.log_metric)):
            if self._accepted is None or name in self._accepted:
                arguments[name] = callback
        return self._reward(**arguments)

    def _wait(self, call: _Call) -> Outcome | None:
        """The outcome of a call; ``None``, with its rows failed, at the deadline."""
        try:
            outcome = call.future.result(max(self._deadline - time.monotonic(), 0.0))
        except TimeoutError:
            self._leave_behind()
            self.seconds += self.spec.timeout
            self._fail(call.rows, f"timed out after {self.spec.timeout:g} s")
            return None
        self.seconds += outcome.seconds
        return outcome

    def _leave_behind(self) -> None:
        """Goes on with a new thread; the old one ends with the call that it is stuck in, if ever."""
        self.timed_out = True
        for call in self._submitted:
            call.future.cancel()
        self._worker.stop()
        kill = getattr(self._reward, "kill", None)
        self._worker, self._reward = RewardWorker(self.spec.label), None
        if callable(kill):
            kill()

    def _take(self, call: _Call, outcome: Outcome) -> None:
        if outcome.error is not None:
            return self._fail(call.rows, describe(outcome.error))
        try:
            values = list(outcome.value)
        except TypeError:
            wanted = f"wanted a list of {len(call.rows)} numbers"
            return self._fail(call.rows, f"returned {type(outcome.value).__name__}, {wanted}")
        if len(values) != len(call.rows):
            return self._fail(call.rows, f"returned {len(values)} scores for {len(call.rows)} samples")
        for position, (row, value) in enumerate(zip(call.rows, values, strict=True)):
            logged = call.parts(position)
            try:
                self.scores[row], own = read_entry(value)
                logged |= own
            except ValueError as error:
                self._fail([row], str(error))
            self.parts[row] = logged if any(entry is not None for entry in logged.values()) else None
        for name, numbers in call.metrics.items():
            self._metrics.setdefault(name, []).extend(numbers)

    def _fail(self, rows: list[int], reason: str) -> None:
        self.failures += [RewardFailure(self.spec.label, row, reason) for row in rows]


class _Call:
    """One call in progress, and what it logs: columns of one value per row, and scalars."""

    future: Future[Outcome]

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows
        self.metrics: dict[str, list[float]] = {}
        self._columns: dict[str, list[Any]] = {}

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        if len(values) == len(self.rows):
            self._columns[column] = list(values)
        else:
            log.warning(
                "log_extra(%r): %d values for %d samples, left out", column, len(values), len(self.rows)
            )

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))

    def parts(self, position: int) -> Parts:
        return {name: values[position] for name, values in self._columns.items()}
