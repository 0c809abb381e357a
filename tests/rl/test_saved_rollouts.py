from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dina.errors import DinaError
from dina.model.checkpoint import load_checkpoint
from dina.model.sampling import SamplingParams
from dina.rl.loop import Trainer
from dina.rl.saved_rollouts import TABLE, TENSORS, load_rollouts, save_rollouts
from dina.rollout.protocol import Prompt, Request, Sample
from dina.rollout.torch_engine import TorchEngine
from tests.rl.ray_world import recipe, save_world

LOCAL = {"runner": "local"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def samples(world: Path) -> list[Sample]:
    engine = TorchEngine(load_checkpoint(world / "checkpoint"))
    draw = Prompt("draw", "a red star", grid=(2, 3), columns={"tag": "t", "include": [{"class": "star"}]})
    pixels = engine.codec.visual_tokenizer.pixels_per_token
    picture = np.full((2 * pixels, 3 * pixels, 3), 200, np.uint8)
    ask = Prompt("ask", "how many?", task="vqa", image=picture, columns={"answer": "3"})
    requests = [Request(prompt, 7 + i, g, i) for g, prompt in enumerate((draw, ask)) for i in range(2)]
    drawn = engine.generate(requests, SamplingParams(max_new_tokens=5))
    return sorted(drawn, key=lambda s: s.request.index + 2 * s.request.group)


def same(left: Sample, right: Sample) -> bool:
    streams = [
        (getattr(left.stream, name), getattr(right.stream, name))
        for name in ("text_ids", "codes", "attention_mask", "actions")
    ]
    tensors = [*streams, (left.logps, right.logps), (left.entropies, right.entropies)]
    pictures = [(left.image, right.image), (left.prompt.image, right.prompt.image)]
    plain = ("text", "weight_version", "finish_reason")
    return (
        all(torch.equal(a, b) and a.dtype == b.dtype for a, b in tensors)
        and all((a is None and b is None) or np.array_equal(a, b) for a, b in pictures)
        and all(getattr(left, name) == getattr(right, name) for name in plain)
        and (left.request.seed, left.request.group, left.request.index)
        == (right.request.seed, right.request.group, right.request.index)
        and (left.prompt.id, left.prompt.text, left.prompt.grid, left.prompt.columns)
        == (right.prompt.id, right.prompt.text, right.prompt.grid, right.prompt.columns)
    )


def test_samples_come_back_as_they_were(samples: list[Sample], tmp_path: Path) -> None:
    save_rollouts(tmp_path, samples, [0.5, None, 1.0, 0.0])
    loaded = load_rollouts(tmp_path)
    assert all(same(a, b) for a, b in zip(samples, loaded, strict=True))
    assert loaded[2].prompt is loaded[3].prompt
    table = pq.read_table(tmp_path / TABLE).to_pylist()
    assert [row["reward"] for row in table] == [0.5, None, 1.0, 0.0]
    assert table[2]["answer"] == samples[2].text and table[0]["prompt"] == "a red star"


@pytest.mark.parametrize("name", [TABLE, TENSORS])
def test_damage_is_named(samples: list[Sample], tmp_path: Path, name: str) -> None:
    save_rollouts(tmp_path, samples)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-50])
    with pytest.raises(DinaError, match=f"saved rollouts in {tmp_path} cannot be read"):
        load_rollouts(tmp_path)


def test_training_on_a_saved_batch_is_training_on_the_batch(world: Path, tmp_path: Path) -> None:
    drawn = Trainer(recipe(world, tmp_path / "drawn", rl=LOCAL), tmp_path / "drawn")
    first = drawn.step(1)
    saved = tmp_path / "drawn" / "rollouts"
    config = recipe(world, tmp_path / "replayed", rl=LOCAL, rollout={"replay": str(saved)})
    replayed = Trainer(config, tmp_path / "replayed")
    replayed.roles.rollout.start = lambda *_: pytest.fail("it drew")  # type: ignore[method-assign,assignment]
    again = replayed.step(1)
    assert {
        k: v for k, v in again.items() if "time" not in k and "timing" not in k and "seconds" not in k
    } == {k: v for k, v in first.items() if "time" not in k and "timing" not in k and "seconds" not in k}
    weights = [dict(t.roles.learner.weights()) for t in (drawn, replayed)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    # One batch serves every step when it is named itself.
    config.rollout.replay = str(saved / "step_000001")
    assert Trainer(config, tmp_path / "again").step(1)["reward"] == first["reward"]


def test_a_replay_that_cannot_be_is_refused(world: Path, tmp_path: Path) -> None:
    config = recipe(world, tmp_path / "run", rl=LOCAL, rollout={"replay": str(tmp_path)})
    with pytest.raises(DinaError, match="holds no saved rollouts"):
        Trainer(config, tmp_path / "run")


def test_a_replay_of_another_size_is_refused(world: Path, samples: list[Sample], tmp_path: Path) -> None:
    save_rollouts(tmp_path / "batch", samples)
    config = recipe(world, tmp_path / "run", rl=LOCAL, rollout={"replay": str(tmp_path / "batch")})
    with pytest.raises(DinaError, match="holds 4 samples, but a step of this recipe has 12"):
        Trainer(config, tmp_path / "run").step(1)
