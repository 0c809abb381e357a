"""What a reward needs beyond the base installation: optional packages, and pretrained weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from dina.errors import DinaError


def require(package: str, extra: str, what: str) -> None:
    """Checks that an optional package is there before work begins.

    Raises:
        DinaError: ``package`` (its import name) is not installed; the message names the extra that brings it.
    """
    if importlib.util.find_spec(package) is None:
        raise DinaError(
            f"{what} needs the package {package}, which is not installed: pip install 'dina-rl[{extra}]'"
        )


def load_pretrained(cls: Any, name: str, **kwargs: Any) -> Any:
    """``cls.from_pretrained(name)`` of a transformers class, from a folder or the hub.

    Code that a checkpoint brings along is never run (``trust_remote_code`` stays off).

    Raises:
        DinaError: there is no such folder and the hub does not give it, or the files do not fit the class.
    """
    try:
        return cls.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DinaError(
            f"{name!r} cannot be loaded by {cls.__name__}: {first} "
            "(give a folder that holds the model, or a hub name where the hub can be reached)"
        ) from error


def pick_device(device: str | None) -> torch.device:
    """The device of a reward model: the one asked for, else the first GPU, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict from ``.safetensors``, or from a ``.pt``/``.pth`` file by torch's weights-only reader.

    Published reward heads come as torch files; the weights-only reader builds tensors and plain containers, and
    refuses to run anything else. A dict with the one key ``state_dict`` is unwrapped.

    Raises:
        DinaError: no such file, or no state dict in it.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DinaError(f"{file} does not exist; give the file with the weights")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DinaError(
            f"{file} cannot be read as plain weights: {str(error).splitlines()[0][:200]}"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise DinaError(f"{file} holds no state dict")
    return found
