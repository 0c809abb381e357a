"""What resuming needs beside the weights, as safetensors and JSON: nothing in it can run code when it is read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dina.errors import DinaError

TENSORS, SCALARS = "training_state.safetensors", "training_state.json"


def save_training_state(folder: Path, state: Any) -> None:
    """Writes ``state``, and the random states of torch, numpy and Python.

    Args:
        state: dicts, lists, tuples, numbers, texts, ``None``, tensors and arrays, nested as you like.

    Raises:
        TypeError: ``state`` holds anything else.
    """
    tensors: dict[str, Tensor] = {}
    scalars = _encode({"state": state, "random": random_states()}, tensors)
    save_file(tensors, folder / TENSORS)
    (folder / SCALARS).write_text(json.dumps(scalars), encoding="utf-8")


def load_training_state(folder: Path) -> Any:
    """Restores the random states, and returns ``state`` as it was saved.

    Raises:
        DinaError: the files are missing or damaged.
    """
    try:
        tensors = load_file(folder / TENSORS)
        tree = _decode(json.loads((folder / SCALARS).read_text(encoding="utf-8")), tensors)
        randomness, state = tree["random"], tree["state"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DinaError(f"The training state in {folder} cannot be read: {error}") from error
    restore_random_states(randomness)
    return state


def random_states() -> dict[str, Any]:
    """The states of all random number generators that a run could draw from."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """The reverse of ``random_states``. CUDA states are restored if there are as many devices as there were."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON of ``value``; what JSON lacks is an object with one key ``$kind``. Tensors go to ``tensors``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, np.ndarray):
        return {"$array": value.tolist(), "dtype": value.dtype.str}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item, tensors) for key, item in value.items()}
        return {"$items": [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    raise TypeError(f"a training state cannot hold a {type(value).__name__}: {value!r}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$array" in value:
        return np.array(value["$array"], dtype=value["dtype"])
    if "$tuple" in value:
        return tuple(_decode(item, tensors) for item in value["$tuple"])
    if "$items" in value:
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["$items"]}
    return {key: _decode(item, tensors) for key, item in value.items()}
