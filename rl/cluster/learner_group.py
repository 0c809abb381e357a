"""Learner ranks: actors that train one policy together. Losing one ends the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from dina.errors import DinaError
from dina.model.stream import TokenStream
from dina.rl.cluster.pool import Limits
from dina.rl.cluster.reactor import Reactor
from dina.rl.environment import pick_device
from dina.rl.learner.batch import UpdateResult
from dina.rl.learner.ranks import free_port, init_rank
from dina.rl.local_roles import open_learner
from dina.rl.memory import keep_freed_memory
from dina.rl.recipe.config import TrainConfig
from dina.rollout.protocol import Sample
from dina.rollout.weight_transport import (
    RayEngines,
    TransportName,
    WeightSender,
    pack_weights,
    transfer_info,
)


class LearnerWorker:
    """The actor: one rank."""

    sender: WeightSender | None = None

    def address(self) -> str:
        return str(ray.util.get_node_ip_address())

    def port(self, address: str) -> int:
        return free_port(address)

    def open(self, config: TrainConfig, rank: int, address: str, port: int) -> None:
        keep_freed_memory()
        self.rank = rank
        if config.learner.ranks > 1:
            device = pick_device(config.run.device)
            init_rank(rank, config.learner.ranks, address, port, device, config.learner.timeout)
        self.learner = open_learner(config)

    def learn(self, samples: Sequence[Sample], step: int, columns: tuple[Tensor, ...]) -> UpdateResult:
        rewards, advantages, valid = columns
        return self.learner.learn(samples, rewards, advantages, valid, step)

    def weights(self) -> list[Any]:
        """A reference to the packed weights, so that they go to the rollout workers past the driver."""
        packed = pack_weights(self.learner.weights())
        return [ray.put(packed)] if self.rank == 0 else []

    def join(
        self, backend: TransportName, workers: Sequence[Any], gpus_per_worker: int, address: str, port: int
    ) -> None:
        """Opens the transfer of weights to these rollout workers, in place of the one before."""
        if self.sender is not None:
            self.sender.close()
        info = transfer_info(backend, self.rank, len(workers) * gpus_per_worker, address, port)
        self.sender = WeightSender(
            info,
            RayEngines(workers),
            partial(self.learner.weights, everywhere=backend == "ipc"),
            gpus_per_worker if backend == "nccl" else None,
        )

    def transfer(self, version: int) -> None:
        assert self.sender is not None, "join comes first"
        self.sender.send(version)

    def log_probs(self, stream: TokenStream) -> Tensor:
        return self.learner.log_probs(stream).cpu()

    def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def restore(self, folder: Path) -> None:
        self.learner.restore(folder)


class LearnerGroup:
    """The role ``LearnerRole`` over the ranks. Every call goes to all, and rank 0 answers.

    Args:
        transport: how weights get to the rollout workers.
    """

    def __init__(
        self,
        config: TrainConfig,
        starts: Sequence[Callable[[], Any]],
        reactor: Reactor,
        limits: Limits,
        transport: TransportName = "object_store",
    ) -> None:
        self.reactor, self.limits, self.transport = reactor, limits, transport
        self.gpus_per_worker = config.rollout.tensor_parallel
        self.actors = [start() for start in starts]
        self.joined: list[Any] = []
        addresses = self._ask("address")
        # Ranks on one machine find each other on its loopback interface.
        master = addresses[0] if len(set(addresses)) > 1 else "127.0.0.1"
        (port,) = self._ask("port", master, actors=self.actors[:1])
        self._ask("open", config, each=[(rank, master, port) for rank in range(len(starts))])

    def learn(
        self, samples: Sequence[Sample], rewards: Tensor, advantages: Tensor, valid: Tensor, step: int
    ) -> UpdateResult:
        light = [_without_pictures(sample) for sample in samples]
        return self._ask("learn", ray.put(light), step, (rewards, advantages, valid))[0]

    def weights(self) -> list[Any] | Transfer:
        return self._ask("weights")[0] if self.transport == "object_store" else Transfer(self)

    def send(self, workers: Sequence[Any], version: int) -> None:
        """See :class:`Transfer`."""
        if workers != self.joined:
            address = self._ask("address")[0]
            (port,) = self._ask("port", address, actors=self.actors[:1])
            self._ask("join", self.transport, list(workers), self.gpus_per_worker, address, port)
            self.joined = list(workers)
        self._ask("transfer", version)

    def log_probs(self, stream: TokenStream) -> Tensor:
        return self._ask("log_probs", stream)[0]

    def save(self, folder: Path) -> None:
        self._ask("save", folder.resolve())

    def restore(self, folder: Path) -> None:
        self._ask("restore", folder.resolve())

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _ask(
        self,
        method: str,
        *arguments: Any,
        each: Sequence[tuple[Any, ...]] | None = None,
        actors: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Calls a method of all ranks at once, and waits for all.

        Args:
            each: further arguments by rank.

        Raises:
            DinaError: a rank died, failed or took too long.
        """
        actors = self.actors if actors is None else actors
        extra = each or [()] * len(actors)
        answers: dict[int, Any] = {}
        waiting = []
        for rank, (actor, more) in enumerate(zip(actors, extra, strict=True)):
            answer = getattr(actor, method).remote(*arguments, *more)
            waiting.append(answer)
            self.reactor.watch(answer, partial(self._take, answers, rank, answer, method))
        start = self.reactor.clock

        def too_late() -> None:
            if self.reactor.clock - start > self.limits.timeout:
                raise DinaError(
                    f"the learner did not finish {method!r} within ray.learner_timeout={self.limits.timeout:g} s. "
                    f"{self.limits.advice}"
                )

        self.reactor.ticks.append(too_late)
        try:
            self.reactor.run_until(lambda: len(answers) == len(actors))
        finally:
            self.reactor.ticks.remove(too_late)
            for answer in waiting:
                self.reactor.forget(answer)
        return [answers[rank] for rank in range(len(actors))]

    def _take(self, answers: dict[int, Any], rank: int, answer: Any, method: str) -> None:
        self.reactor.forget(answer)
        try:
            answers[rank] = ray.get(answer)
        except RayTaskError as error:
            # A full disk is told by whoever wanted the checkpoint.
            if isinstance(error.cause, DinaError) or (method == "save" and isinstance(error.cause, OSError)):
                raise error.cause from None
            raise DinaError(
                f"learner rank {rank} failed in {method!r}: {type(error.cause).__name__}: {error.cause}. "
                f"{self.limits.advice}"
            ) from error
        except RayError as error:
            raise DinaError(
                f"learner rank {rank} died in {method!r} (killed, or out of memory). {self.limits.advice}"
            ) from error


@dataclass
class Transfer:
    """The weights that a learner group holds, to be sent by vLLM's own transfer.

    The ranks and the workers take part together: until all have, none does anything else.
    """

    group: LearnerGroup

    def send(self, workers: Sequence[Any], version: int) -> None:
        """Sends them to these rollout workers, which have nothing else to do."""
        self.group.send(workers, version)

    def packed(self) -> Any:
        """For one worker by itself: what becomes a reference to the packed weights when the ranks are free."""
        return [actor.weights.remote() for actor in self.group.actors][0]


def _without_pictures(sample: Sample) -> Sample:
    """What the learner needs of a sample: pictures would only fill its memory."""
    prompt = replace(sample.prompt, image=None)
    return replace(sample, image=None, request=replace(sample.request, prompt=prompt))
