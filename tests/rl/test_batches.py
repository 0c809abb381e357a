from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dina.errors import DinaError
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rl.batches import Batches
from dina.rl.data import PromptOrder
from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import Deliver
from dina.rollout.protocol import Prompt, Request, Sample

PROMPTS = [Prompt(str(i), f"a star {i}", grid=(1, 1)) for i in range(5)]


def sample(request: Request, version: int) -> Sample:
    stream = TokenStream.from_prompt([1, 2], torch.full((2, 1), -1))
    return Sample(request, stream, torch.zeros(2, 2), torch.zeros(2, 2), text="", weight_version=version)


class Workers:
    """A rollout role that draws in the order of its queue, when told to, in the reverse order of the requests."""

    def __init__(self, lose: int = 0) -> None:
        self.queue: list[Any] = []
        self.version, self.lose = 0, lose

    def start(self, requests: Sequence[Request], sampling: SamplingParams, deliver: Deliver) -> Any:
        self.queue.append((requests, deliver))
        return self

    def update(self, version: int) -> None:
        self.queue.append(version)

    def wait(self) -> None:
        for entry in self.queue:
            if isinstance(entry, int):
                self.version = entry
                continue
            requests, deliver = entry
            for position in reversed(range(self.lose, len(requests))):
                deliver(position, sample(requests[position], self.version))
        self.queue.clear()


class Scored:
    def __init__(self) -> None:
        self.groups: list[tuple[int, list[int]]] = []

    def submit(self, step: int, group: Sequence[Sample]) -> None:
        assert len({s.request.group for s in group}) == 1
        self.groups.append((step, [s.request.index for s in group]))


def batches(lag: int, workers: Workers, scored: Scored, max_steps: int = 20) -> Batches:
    config = TrainConfig.model_validate(
        {
            "model": {"path": "c"},
            "data": {"train": "p"},
            "rewards": [{"use": "objects"}],
            "run": {"max_steps": max_steps},
            "algorithm": {"prompts_per_step": 2, "num_generations": 3},
            "rl": {"runner": "ray", "mode": "async" if lag else "sync", "max_staleness": lag or 1},
        }
    )
    order = PromptOrder(PROMPTS, seed=1)
    return Batches(config, workers, scored, order, SamplingParams())  # type: ignore[arg-type]


def train(batches: Batches, workers: Workers, steps: range) -> list[list[Sample]]:
    taken = []
    for number in steps:
        batches.admit()
        assert batches.capacity() < 6
        taken.append(batches.take(number))
        batches.version = number
        workers.update(number)
    return taken


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_batch_is_drawn_with_the_weights_that_are_promised(lag: int) -> None:
    workers, scored = Workers(), Scored()
    taken = train(batches(lag, workers, scored), workers, range(1, 11))
    for number, samples in enumerate(taken, start=1):
        assert {s.weight_version for s in samples} == {max(0, number - 1 - lag)}
        assert [(s.request.group, s.request.index) for s in samples] == [
            (g, i) for g in (0, 1) for i in range(3)
        ]
    # Complete groups go to the scorer, whatever order the samples came in.
    assert len(scored.groups) >= 20 and all(indices == [0, 1, 2] for _, indices in scored.groups)


def test_staleness_is_told() -> None:
    workers = Workers()
    ahead = batches(2, workers, Scored())
    ages = []
    for number in range(1, 6):
        ahead.admit()
        ages.append(ahead.staleness(ahead.take(number))["staleness/max"])
        ahead.version = number
        workers.update(number)
    assert ages == [0, 1, 2, 2, 2]


def test_nothing_is_drawn_beyond_the_end_of_the_run() -> None:
    workers = Workers()
    ahead = batches(3, workers, Scored(), max_steps=2)
    ahead.admit()
    assert len(workers.queue) == 2


@pytest.mark.parametrize("lag", [0, 2])
def test_what_was_drawn_ahead_is_saved_and_trained_on_after_a_restart(lag: int, tmp_path: Path) -> None:
    workers = Workers()
    straight = train(batches(lag, workers, Scored()), workers, range(1, 9))
    workers = Workers()
    first = batches(lag, workers, Scored())
    head = train(first, workers, range(1, 5))
    first.save(tmp_path)
    assert len(list((tmp_path / "in_flight").glob("*"))) == (lag if lag else 0)
    workers, scored = Workers(), Scored()
    workers.version = 4
    second = batches(lag, workers, scored)
    second.order.load_state_dict(first.order.state_dict())
    second.restore(tmp_path, taken=4, version=4)
    assert len(scored.groups) == 2 * lag
    tail = train(second, workers, range(5, 9))
    told = [[(replace(s.request, prompt=s.prompt.id), s.weight_version) for s in b] for b in head + tail]  # type: ignore[arg-type]
    expected = [[(replace(s.request, prompt=s.prompt.id), s.weight_version) for s in b] for b in straight]  # type: ignore[arg-type]
    assert told == expected


def test_a_lost_sample_is_an_error() -> None:
    broken = batches(0, Workers(lose=2), Scored())
    broken.admit()
    with pytest.raises(DinaError, match="no sample for 2 of its requests"):
        broken.take(1)
