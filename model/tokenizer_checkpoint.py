"""Checkpoints of a tokenizer run: safetensors and JSON only, replaced as a whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dina.errors import DinaError


@dataclass
class Progress:
    """How far a run is: ``step`` steps of ``stage`` are done, after ``seconds`` of training."""

    stage: str = "tokenization"
    step: int = 0
    seconds: float = 0.0


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Fills a new folder with ``write`` and only then puts it in the place of ``target``.

    Raises:
        DinaError: writing failed, a full disk for example; ``target`` is as it was.
    """
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        write(new)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        new.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise DinaError(f"cannot write {target}: {error}. What was saved before is still there") from error
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(
    folder: Path, progress: Progress, recipe: dict, modules: nn.Module, optimizer: Optimizer
) -> None:
    """Saves everything that a run needs to go on with the same numbers."""
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in modules.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}

    def write(new: Path) -> None:
        save_file(tensors, new / "state.safetensors")
        (new / "progress.json").write_text(json.dumps({"recipe": recipe, "progress": asdict(progress)}))

    replace_folder(folder, write)


def load_checkpoint(folder: Path, recipe: dict, modules: nn.Module) -> tuple[Progress, dict[str, Tensor]]:
    """Restores ``modules``; returns the progress and the optimizer's tensors (see :func:`restore_optimizer`).

    Raises:
        DinaError: the checkpoint is damaged, or belongs to another recipe.
    """
    try:
        saved = json.loads((folder / "progress.json").read_text())
        tensors = load_file(folder / "state.safetensors")
        progress = Progress(**saved["progress"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DinaError(
            f"checkpoint {folder} cannot be read ({error}); remove the folder to start anew"
        ) from error
    different = [key for key in recipe if saved["recipe"].get(key) != recipe[key]]
    if different:
        raise DinaError(
            f"checkpoint {folder} is of a recipe with other values of {', '.join(different)}; "
            "set another output_dir, or resume: false to start anew"
        )
    modules.load_state_dict(_under("model.", tensors))
    return progress, _under("optimizer.", tensors)


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
