from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dina.errors import DinaError
from dina.model.checkpoint import load_checkpoint
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rl import loop
from dina.rl.local_roles import LocalRollout, open_local_roles
from dina.rl.loop import train
from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import Roles
from dina.rl.weight_probe import LONGEST, beginning
from dina.rollout.torch_engine import TorchEngine
from tests.rl.ray_world import all_metrics, recipe, save_world


def stream(forced: set[int], prompt: int, length: int) -> TokenStream:
    """A prompt, then sampled patches with positions in between that the layout sets."""
    found = TokenStream.from_prompt(range(length), torch.full((length, 2), -1))
    for position in range(prompt, length):
        if position not in forced:
            found.actions[0, position, 1:] = True
    return found


def test_a_probe_ends_before_the_first_newline() -> None:
    found = beginning(stream({9, 14}, prompt=5, length=15))
    assert found.text_ids[0].tolist() == list(range(9))
    assert found.actions.shape == (1, 9, 3) and found.codes.shape == (1, 9, 2)


def test_a_probe_of_a_wide_picture_or_a_long_answer_is_cut() -> None:
    assert beginning(stream(set(), prompt=5, length=100)).length == 5 + LONGEST
    assert beginning(stream(set(), prompt=5, length=8)).length == 8


@dataclass
class Answers:
    values: list[list[Tensor]]

    def wait(self) -> list[list[Tensor]]:
        return self.values


class LosingRollout(LocalRollout):
    """An engine with weights of its own, on the way to which those from version ``lost`` on get lost."""

    lost = 100

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.engine.update_weights(tensors if version < self.lost else (), version)

    def start_probe(self, streams: Sequence[TokenStream], sampling: SamplingParams) -> Answers:  # type: ignore[override]
        return Answers([self.engine.probe(streams, sampling)])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def open_roles(config: TrainConfig, folder: Path) -> Roles:
        engine = TorchEngine(load_checkpoint(Path(config.model.path)))
        return replace(open_local_roles(config), rollout=LosingRollout(engine))

    monkeypatch.setattr(loop, "open_roles", open_roles)
    return save_world(tmp_path)


def test_a_run_stops_when_weights_did_not_arrive(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(recipe(world, world / "whole", run={"max_steps": 2}))
    assert all(line["probe/max_logp_diff"] < 1e-4 for line in all_metrics(run))
    monkeypatch.setattr(LosingRollout, "lost", 2)
    with pytest.raises(DinaError, match="weight probe failed"):
        train(recipe(world, world / "run"))
    assert len(all_metrics(world / "run")) == 1


def test_a_resumed_run_learns_nothing_with_weights_that_did_not_arrive(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(recipe(world, world / "run", run={"max_steps": 2}))
    monkeypatch.setattr(LosingRollout, "lost", 0)
    with pytest.raises(DinaError, match="weight probe failed"):
        train(recipe(world, run, run={"max_steps": 3}), resume=run)
    assert len(all_metrics(run)) == 2


def test_nothing_is_saved_that_such_weights_drew_ahead(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LosingRollout, "lost", 1)
    run, ahead = world / "run", {"runner": "ray", "mode": "async"}
    with pytest.raises(DinaError, match="weight probe failed"):
        train(recipe(world, run, run={"save_steps": 1}, rl=ahead))
    assert len(all_metrics(run)) == 1 and not list((run / "checkpoints").iterdir())
