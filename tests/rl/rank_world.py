"""Samples, recipes and processes for tests of the learner's ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dina.model.sampling import SamplingParams
from dina.rl.learner import zero
from dina.rl.learner.batch import UpdateResult
from dina.rl.learner.learner import Learner
from dina.rl.learner.ranks import init_rank
from dina.rl.recipe.config import TrainConfig
from dina.rollout.protocol import Prompt, Request, Sample
from dina.rollout.torch_engine import TorchEngine
from tests.tiny_checkpoint import tiny_checkpoint

SAMPLING = SamplingParams(max_new_tokens=4)
# A minibatch has 7 of a step's 14 sequences: an odd number for two ranks, and more than one micro-batch for each.
SEQUENCES = 14


def recipe(dtype: str = "float32", **learner: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "run": {"max_steps": 4, "dtype": dtype},
            "model": {"path": "unused"},
            "data": {"train": "unused"},
            "algorithm": {
                "num_generations": 2,
                "prompts_per_step": 7,
                "minibatches": 2,
                "entropy_coef": 0.01,
            },
            "filters": {"entropy_k": 2.0, "mismatch_tau": 0.3},
            "optim": {
                "learning_rate": 1e-2,
                "micro_batch_size": 3,
                "max_grad_norm": 0.5,
                "weight_decay": 0.1,
                # Where a gradient is 0 but for rounding, a smaller one would make its sign a whole step.
                "adam_epsilon": 1e-3,
                "lr_scheduler_type": "cosine",
            },
            "rewards": [{"use": "tests.rl.rewards:red"}],
            "learner": learner,
        }
    )


@cache
def samples(*, lies: Sequence[int] = (3, 4)) -> list[Sample]:
    """Answers and pictures in turn, always the same; of the rows ``lies`` the sampler reports falsely."""
    picture = np.full((32, 32, 3), 200, dtype=np.uint8)
    requests = [
        Request(Prompt(str(i), f"a red star {i}", "t2i", (1 + i % 3, 2)), seed=i)
        if i % 2
        else Request(Prompt(str(i), "how many?", "vqa", image=picture), seed=i)
        for i in range(SEQUENCES)
    ]
    drawn = sorted(
        TorchEngine(tiny_checkpoint(), 4).generate(requests, SAMPLING), key=lambda s: s.request.seed
    )
    for row in lies:
        position, channel = drawn[row].stream.actions[0].nonzero()[0]
        logps = drawn[row].logps
        logps[position, channel] = -60.0 if logps[position, channel] > -0.5 else 0.0
    return drawn


def learn(learner: Learner, step: int, drawn: Sequence[Sample]) -> UpdateResult:
    rewards = torch.linspace(0, 1, SEQUENCES, dtype=torch.float64)
    valid = torch.ones(SEQUENCES, dtype=torch.bool)
    valid[6] = False
    return learner.learn(drawn, rewards, torch.linspace(-1, 1, SEQUENCES).roll(5), valid, step)


def new_learner(config: TrainConfig) -> Learner:
    return Learner(tiny_checkpoint(), config, SAMPLING)


def numbers(result: UpdateResult) -> dict[str, Any]:
    dropped = [[dropped.row, dropped.drop.reason] for dropped in result.dropped]
    counts = {"steps": result.steps, "skipped": result.skipped, "dropped": dropped}
    return {**result.stats.compute(), **result.metrics, **counts}


def record(learner: Learner, results: Sequence[UpdateResult], folder: Path, name: str) -> None:
    """Leaves in ``folder`` what this rank knows: whole weights (rank 0), probabilities, numbers of each step."""
    tensors = {f"weight.{key}": tensor.clone() for key, tensor in learner.weights()}
    tensors["logp"] = learner.log_probs(samples()[1].stream)
    save_file(tensors, folder / f"{name}.{learner.ranks.rank}.safetensors")
    logged = json.dumps([numbers(result) for result in results])
    (folder / f"{name}.{learner.ranks.rank}.json").write_text(logged)


def train(folder: Path, name: str, config: TrainConfig) -> None:
    """Three steps; a new learner then repeats the third from what was saved after the second."""
    drawn = samples()
    learner = new_learner(config)
    results = [learn(learner, step, drawn) for step in (1, 2)]
    learner.save(folder / f"{name}.saved")
    record(learner, [*results, learn(learner, 3, drawn)], folder, name)
    again = new_learner(config)
    again.restore(folder / f"{name}.saved")
    record(again, [*results, learn(again, 3, drawn)], folder, f"{name}.resumed")


def skip(folder: Path, name: str, config: TrainConfig) -> None:
    """A step of which nothing is kept, and one of which something is."""
    learner = new_learner(config)
    record(learner, [learn(learner, 1, samples(lies=range(SEQUENCES)))], folder, f"{name}.skipped")
    record(learner, [learn(learner, 2, samples())], folder, f"{name}.after")


def rank_main(rank: int, world_size: int, port: int, folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    """What each process does: every run in turn."""
    torch.set_num_threads(1)
    zero.PERSISTENCE_THRESHOLD = 0  # or stage 3 would leave a model as small as this one whole
    init_rank(rank, world_size, master_port=port)
    for name, learner in runs.items():
        (skip if name.startswith("skip") else train)(folder, name, recipe(**learner))
