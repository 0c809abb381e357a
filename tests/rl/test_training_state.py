from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dina.errors import DinaError
from dina.rl.learner.training_state import load_training_state, save_training_state


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_a_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    state = {
        "numbers": [1, -2.5e-310, math.inf, math.nan, True, None, 2**80, 0.1],
        "tensors": (base, base[:, ::2], base.T, torch.tensor(3.0, dtype=torch.bfloat16), torch.zeros(0)),
        3: {"int key": np.arange(3, dtype=np.uint32), ("a", 1): []},
        "$odd": {"$tensor": "not one"},
    }
    save_training_state(tmp_path, state)
    assert equal(load_training_state(tmp_path), state)


def test_numpy_numbers_become_numbers(tmp_path: Path) -> None:
    save_training_state(tmp_path, [np.float64(0.1), np.int64(3), np.float32(0.5), np.bool_(True)])
    assert equal(load_training_state(tmp_path), [0.1, 3, 0.5, True])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        noise = torch.randn(5, 4) * random.random() + float(np.random.rand())
        optimizer.zero_grad()
        model(noise).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_six_steps_are_three_and_three_after_resuming(tmp_path: Path, name: str) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        model = nn.Linear(4, 3)
        options = {"momentum": 0.9} if name == "SGD" else {}
        return model, getattr(torch.optim, name)(model.parameters(), lr=0.01, **options)

    whole, optimizer = fresh()
    train(whole, optimizer, 6)

    first, optimizer = fresh()
    train(first, optimizer, 3)
    save_training_state(tmp_path, {"weights": first.state_dict(), "optimizer": optimizer.state_dict()})
    train(first, optimizer, 1)

    second, optimizer = fresh()
    state = load_training_state(tmp_path)
    second.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    train(second, optimizer, 3)
    assert equal(dict(second.state_dict()), dict(whole.state_dict()))


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold a Path|cannot hold a PosixPath"):
        save_training_state(tmp_path, {"a": [Path("x")]})


def test_missing_and_damaged_states_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DinaError, match="cannot be read"):
        load_training_state(tmp_path)
    save_training_state(tmp_path, torch.ones(50))
    os.truncate(tmp_path / "training_state.safetensors", 100)
    with pytest.raises(DinaError, match="cannot be read"):
        load_training_state(tmp_path)


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    save_training_state(tmp_path, {"optimizer": optimizer, "a": torch.ones(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "training_state.json",
        "training_state.safetensors",
    ]
