"""Rollout workers: a pool of engines that looks like one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rl.cluster.learner_group import Transfer
from dina.rl.cluster.pool import Call, Limits, WorkerPool
from dina.rl.cluster.reactor import Reactor
from dina.rl.engines import open_engine
from dina.rl.memory import keep_freed_memory
from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import Deliver
from dina.rollout.protocol import Prompt, Request, Sample
from dina.rollout.weight_transport import TransportName, pack_weights, unpack_weights

Numbered = list[tuple[int, Request]]


class RolloutWorker:
    """The actor: one engine, made from the recipe."""

    def open(self, config: TrainConfig, transport: TransportName) -> None:
        keep_freed_memory()
        # An engine with a transport has ``transfer_weights`` beside the protocol.
        self.engine: Any = open_engine(
            Path(config.model.path),
            config.rollout,
            config.run.dtype,
            config.run.device,
            gpu_memory=0.4 if config.ray.placement == "colocated" else 0.85,
            transport=transport,
        )

    def generate(self, requests: Numbered, sampling: SamplingParams) -> Iterator[tuple[int, Sample]]:
        """Yields (position, sample). The sample comes without its request, which the caller has."""
        positions = {id(request): position for position, request in requests}
        for sample in self.engine.generate([request for _, request in requests], sampling):
            position = positions[id(sample.request)]
            yield position, _compact(sample)

    def update(self, references: Sequence[Any], version: int) -> None:
        """``references``: one, to packed weights."""
        (packed,) = ray.get(list(references))
        self.engine.update_weights(unpack_weights(packed), version)

    def transfer_weights(self, step: str, info: Any, version: int) -> None:
        """One step of vLLM's own weight transfer, asked for by the learner."""
        self.engine.transfer_weights(step, info, version)

    def wait(self) -> None:
        """Answers when all that was asked before is done."""

    def probe(self, streams: Sequence[TokenStream], sampling: SamplingParams) -> list[Tensor]:
        return self.engine.probe(streams, sampling)

    def check_lengths(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        self.engine.check_lengths(prompts, sampling)

    def close(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()


class RolloutPool:
    """The role ``Rollout`` over several workers. The groups of a batch are dealt to them in turn.

    Args:
        starts: what starts each worker's actor.
        transport: how weights get from the learner to the workers.
    """

    def __init__(
        self,
        config: TrainConfig,
        starts: Sequence[Callable[[], Any]],
        reactor: Reactor,
        limits: Limits,
        transport: TransportName = "object_store",
    ) -> None:
        self.config, self.reactor, self.transport = config, reactor, transport
        # What each worker computes with: a replacement gets the same before it goes on.
        self._weights: dict[int, tuple[Callable[[], Any], int]] = {}
        self.pool = WorkerPool("rollout worker", starts, self._greet, reactor, limits)

    def start(self, requests: Sequence[Request], sampling: SamplingParams, deliver: Deliver) -> Draw:
        shares: list[dict[int, Request]] = [{} for _ in range(len(self.pool))]
        turns = {group: turn for turn, group in enumerate(dict.fromkeys(r.group for r in requests))}
        for position, request in enumerate(requests):
            shares[turns[request.group] % len(shares)][position] = request
        calls = []
        for index, share in enumerate(shares):
            if share:
                calls.append(self._draw(share, sampling, deliver))
                self.pool.submit(index, calls[-1])
        return Draw(self.reactor, calls)

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Sample]:
        """Begins at once, and yields the samples as they arrive."""
        arrived: deque[Sample] = deque()
        draw = self.start(requests, sampling, lambda _, sample: arrived.append(sample))
        return self._read(arrived, draw)

    def update_weights(self, tensors: Any, version: int) -> None:
        """Queues the update on every worker, or sends the weights at once.

        Args:
            tensors: what ``LearnerGroup.weights`` returns, or named tensors.
        """
        workers = range(len(self.pool))
        if isinstance(tensors, Transfer):
            # Who died meanwhile is replaced before the others wait for it in vain.
            self._ask("wait", workers).wait()
            tensors.send(self.pool.actors(), version)
            self._weights = dict.fromkeys(workers, (tensors.packed, version))
            return
        references = tensors if isinstance(tensors, list) else [ray.put(pack_weights(tensors))]
        for index in workers:
            self.pool.submit(index, self._update(index, lambda: references, version))

    def start_probe(self, streams: Sequence[TokenStream], sampling: SamplingParams) -> Answers:
        return self._ask("probe", range(len(self.pool)), streams, sampling)

    def check_lengths(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        self._ask("check_lengths", [0], prompts, sampling).wait()

    def faults(self) -> dict[str, float]:
        return {"faults/rollout_restarts": float(self.pool.take_restarts())}

    def close(self) -> None:
        self.pool.close()

    def _greet(self, index: int) -> list[Call]:
        calls = [Call("open", lambda: (self.config, self.transport))]
        if index in self._weights:
            calls.append(self._update(index, *self._weights[index]))
        return calls

    def _update(self, index: int, references: Callable[[], Any], version: int) -> Call:
        def done(_: None) -> None:
            self._weights[index] = (references, version)

        return Call("update", lambda: (references(), version), done)

    def _draw(self, share: dict[int, Request], sampling: SamplingParams, deliver: Deliver) -> Call:
        """A call whose arguments are the requests of ``share`` that no sample has come for."""

        def receive(part: tuple[int, Sample]) -> None:
            position, sample = part
            sample.request = share.pop(position)
            deliver(position, sample)

        return Call("generate", lambda: (list(share.items()), sampling) if share else None, receive, True)

    def _ask(self, method: str, workers: Iterable[int], *arguments: Any) -> Answers:
        answers = Answers(self.reactor)
        for index in workers:
            call = Call(method, lambda: arguments, answers.values.append)
            answers.calls.append(call)
            self.pool.submit(index, call)
        return answers

    def _read(self, arrived: deque[Sample], draw: Draw) -> Iterator[Sample]:
        while True:
            self.reactor.run_until(lambda: bool(arrived) or draw.done())
            if not arrived:
                return
            yield arrived.popleft()


class Draw:
    """Requests that workers are drawing."""

    def __init__(self, reactor: Reactor, calls: list[Call]) -> None:
        self.reactor, self.calls = reactor, calls

    def done(self) -> bool:
        return all(call.done for call in self.calls)

    def wait(self) -> None:
        self.reactor.run_until(self.done)


class Answers(Draw):
    """The answers of the workers that were asked, in whatever order they come."""

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor, [])
        self.values: list[Any] = []

    def wait(self) -> list[Any]:  # type: ignore[override]
        super().wait()
        return self.values


def _compact(sample: Sample) -> Sample:
    """Frees a sample from the batch that its tensors are slices of, which would travel with each of them."""
    stream = sample.stream
    sample.request = None  # type: ignore[assignment]
    sample.stream = TokenStream(
        *(t.cpu().clone() for t in (stream.text_ids, stream.codes, stream.attention_mask, stream.actions))
    )
    sample.logps, sample.entropies = sample.logps.cpu().clone(), sample.entropies.cpu().clone()
    return sample
