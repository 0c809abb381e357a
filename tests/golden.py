"""Golden vectors of the reference modules; tests that need them skip where they are absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "shared" / "golden"


def load_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (floats as float32) and metadata of one golden file."""
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"golden vectors are not here: {name}")
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["golden"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, metadata


def weights_of(tensors: dict[str, Tensor], drop: tuple[str, ...] = ()) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if not k.startswith(("in.", "out.", *drop))}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()
