"""Rewards for tests of the loop, named in recipes as ``tests.rl.rewards:<name>``."""

from __future__ import annotations

from typing import Any

import numpy as np


def red(generated_images: list[Any], **columns: Any) -> list[float]:
    """Share of red in a picture."""
    return [float(np.asarray(image)[..., 0].mean() / 255) for image in generated_images]


def broken(prompts: list[str], **columns: Any) -> list[float]:
    raise RuntimeError("the scorer is gone")


def sometimes(prompts: list[str], generated_images: list[Any], **columns: Any) -> list[float]:
    """NaN for a part of the samples."""
    scores = red(generated_images)
    return [float("nan") if i % 3 == 0 else score for i, score in enumerate(scores)]


def red_of_odd(prompts: list[str], generated_images: list[Any], **columns: Any) -> list[float]:
    """Share of red where the prompt's number is odd; 0, and so no signal, where it is even."""
    return [share * (int(p.split()[-1]) % 2) for p, share in zip(prompts, red(generated_images), strict=True)]


def length(completions: list[Any], **columns: Any) -> list[float | None]:
    """Length of an answer in characters; does not apply to pictures."""
    said = [completion[0]["content"] for completion in completions]
    return [float(len(text)) if isinstance(text, str) else None for text in said]


def silence(prompts: list[str], **columns: Any) -> list[float]:
    """One and the same for all."""
    return [0.5] * len(prompts)
