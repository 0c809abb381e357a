"""OCR engines behind one protocol, and their short names.

Add one: a class with ``read_many``, and ``engine: package.module:Class`` in the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

ENGINES = {
    "rapidocr": "dina.rewards.ocr_engines.rapid:RapidOCREngine",
    "easyocr": "dina.rewards.ocr_engines.easy:EasyOCREngine",
    "got_ocr": "dina.rewards.ocr_engines.got:GotOCREngine",
}

# Text of 10 px is read best at twice its size; 128 and 736 bound time on small and large pictures.
_MIN_SIDE, _MAX_SIDE = 128, 736


class OCREngine(Protocol):
    """Reads the text in pictures, and knows nothing of what was asked for."""

    def read_many(self, images: Sequence[np.ndarray]) -> list[list[str]]:
        """The lines of each picture (``[H, W, 3]`` uint8 RGB), in reading order."""
        ...


def enlarged(image: np.ndarray) -> np.ndarray:
    """Twice the size, within bounds on the shorter side; never smaller than it is."""
    short = min(image.shape[:2])
    factor = max(1.0, min(max(2 * short, _MIN_SIDE), _MAX_SIDE) / short)
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
