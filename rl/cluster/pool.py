"""Actors that can be lost: their unanswered calls are made again on a replacement."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dina.errors import DinaError
from dina.rl.cluster.reactor import Reactor

log = logging.getLogger(__name__)
_CLOSE_SECONDS = 5.0


@dataclass(eq=False)
class Call:
    """A call of an actor's method that can be made again.

    Attributes:
        arguments: asked for each time the call is made; ``None`` if nothing is left to do.
        receive: gets the answer; of a streaming method, every part of it.
        streams: the method is a generator.
        done: answered in full.
    """

    method: str
    arguments: Callable[[], tuple[Any, ...] | None]
    receive: Callable[[Any], None] = lambda answer: None
    streams: bool = False
    done: bool = False


@dataclass
class Limits:
    """When a worker counts as lost, and when losing it stops the run.

    Attributes:
        failures: in a row, without an answer between.
        timeout: seconds without a sign of life.
        advice: what a message about the end of the run says at its end.
    """

    failures: int
    timeout: float
    advice: str = ""


@dataclass
class _Worker:
    """One place in a pool. ``calls`` are those without a full answer, in their order."""

    index: int
    start: Callable[[], Any]
    actor: Any = None
    calls: list[Call] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    failures: int = 0
    heard: float = 0.0


class WorkerPool:
    """Actors of one role. Each does its calls one after the other, in their order.

    Args:
        name: of a member, in messages.
        starts: what starts each actor; called again for a replacement.
        greet: the calls with which a new actor is made ready, by its index.
    """

    def __init__(
        self,
        name: str,
        starts: Sequence[Callable[[], Any]],
        greet: Callable[[int], list[Call]],
        reactor: Reactor,
        limits: Limits,
    ) -> None:
        self.name, self.greet, self.reactor, self.limits = name, greet, reactor, limits
        self.restarts = 0
        self.workers = [_Worker(index, start) for index, start in enumerate(starts)]
        reactor.ticks.append(self._look_for_silent_ones)
        for worker in self.workers:
            self._launch(worker)

    def __len__(self) -> int:
        return len(self.workers)

    def submit(self, index: int, call: Call) -> None:
        """Queues a call on worker ``index``."""
        worker = self.workers[index]
        worker.calls.append(call)
        self._make(worker, call)

    def actors(self) -> list[Any]:
        return [worker.actor for worker in self.workers]

    def least_busy(self) -> int:
        return min(self.workers, key=lambda worker: len(worker.calls)).index

    def renew(self, index: int, reason: str) -> None:
        """Ends an actor that answers and yet is no longer fit, and starts another, which does its unanswered calls."""
        self.restarts += 1
        log.warning("%s %d is replaced (%s)", self.name, index, reason)
        self._restart(self.workers[index])

    def take_restarts(self) -> int:
        """How many actors were replaced since the last call."""
        count, self.restarts = self.restarts, 0
        return count

    def close(self) -> None:
        """Lets the actors put their things away, then ends them."""
        self.reactor.ticks.remove(self._look_for_silent_ones)
        for worker in self.workers:
            self._forget(worker)
        closing = [worker.actor.close.remote() for worker in self.workers]
        ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for worker in self.workers:
            ray.kill(worker.actor)

    def _launch(self, worker: _Worker) -> None:
        worker.actor, worker.heard = worker.start(), self.reactor.clock
        for call in [*self.greet(worker.index), *worker.calls]:
            self._make(worker, call)

    def _make(self, worker: _Worker, call: Call) -> None:
        if (arguments := call.arguments()) is None:
            return self._finish(worker, call)
        if not worker.answers:
            worker.heard = self.reactor.clock
        method = getattr(worker.actor, call.method)
        if call.streams:
            method = method.options(num_returns="streaming")
        answer = method.remote(*arguments)
        worker.answers.append(answer)
        self.reactor.watch(answer, partial(self._take, worker, call, answer))

    def _take(self, worker: _Worker, call: Call, answer: Any) -> None:
        """Reads what has arrived of an answer."""
        try:
            part = ray.get(next(answer)) if call.streams else ray.get(answer)
        except StopIteration:
            return self._finish(worker, call, answer)
        except RayTaskError as error:
            if isinstance(error.cause, DinaError):
                raise error.cause from None
            return self._replace(worker, f"{type(error.cause).__name__}: {error.cause}")
        except RayError as error:
            return self._replace(worker, str(error).splitlines()[0])
        worker.heard = self.reactor.clock
        if call in worker.calls:
            worker.failures = 0
        if not call.streams:
            self._finish(worker, call, answer)
        call.receive(part)

    def _finish(self, worker: _Worker, call: Call, answer: Any = None) -> None:
        call.done = True
        if call in worker.calls:
            worker.calls.remove(call)
        if answer is not None:
            worker.answers.remove(answer)
            self.reactor.forget(answer)

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Starts another actor, which does again what the lost one has not answered."""
        worker.failures += 1
        self.restarts += 1
        who = f"{self.name} {worker.index}"
        if worker.failures > self.limits.failures:
            raise DinaError(
                f"{who} failed {worker.failures} times in a row (limit ray.max_failures={self.limits.failures}); "
                f"the last time: {reason} {self.limits.advice}"
            )
        log.warning("%s is lost (%s); starting another, which does its work again", who, reason)
        self._restart(worker)

    def _restart(self, worker: _Worker) -> None:
        self._forget(worker)
        ray.kill(worker.actor)
        self._launch(worker)

    def _forget(self, worker: _Worker) -> None:
        for answer in worker.answers:
            self.reactor.forget(answer)
        worker.answers.clear()

    def _look_for_silent_ones(self) -> None:
        for worker in self.workers:
            silent = self.reactor.clock - worker.heard
            if worker.answers and silent > self.limits.timeout:
                self._replace(worker, f"no sign of life for {silent:.0f} s (limit ray.worker_timeout)")
