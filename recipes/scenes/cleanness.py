"""The quality of a drawing of this world: plain colours on a plain ground, without noise and smudges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dina.recipes.scenes.shapes import COLORS, GROUND

TOLERANCE = 20.0
_PALETTE = np.array([GROUND, *COLORS.values()], dtype=np.float32)


def cleanness(generated_images: Sequence[Image.Image], tolerance: float = TOLERANCE, **_: Any) -> list[float]:
    """Reward: the share of pixels within ``tolerance`` (of 255, Euclidean in RGB) of a colour that the world has.

    The soft edges of a clean drawing are none of these, so it scores a little below 1. Photographs are better judged
    by ``image_quality``, whose BRISQUE takes flat drawings for unnatural and noise on them for texture.
    """
    return [float((_distances(image) <= tolerance).mean()) for image in generated_images]


def _distances(image: Image.Image) -> np.ndarray:
    """``[H * W]``: from each pixel to the nearest colour."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32).reshape(-1, 1, 3)
    return np.linalg.norm(pixels - _PALETTE, axis=2).min(axis=1)
