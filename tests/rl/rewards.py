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
