"""What a detector says of a picture, and what a detector is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One object that a detector saw.

    Attributes:
        label: class name as the prompts spell it, or ``unknown`` for a thing that is no class.
        color: colour name, ``None`` if the detector does not read colours.
        box: ``(x0, y0, x1, y1)`` in pixels, y downwards.
        score: confidence; the best boxes of a class are compared first.
        mask: the object's pixels, ``[H, W]`` boolean, where the detector gives them.
    """

    label: str
    color: str | None
    box: Box
    score: float = 1.0
    mask: np.ndarray | None = field(default=None, compare=False, repr=False)


class Detector(Protocol):
    """Reads a picture's pixels, and nothing else: no prompt, no wish."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        """``image``: ``[H, W, 3]`` uint8 RGB."""
        ...


class BatchDetector(Protocol):
    """A detector with weights: reads many pictures at once, and may be told which classes matter.

    Attributes:
        counting_threshold: least score of an object where a prompt asks for a number of them.
    """

    counting_threshold: float

    def detect_many(
        self, images: Sequence[np.ndarray], names: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """``images``: ``[H, W, 3]`` uint8 RGB each; ``names``: the classes of each one's prompt."""
        ...


class ColorReader(Protocol):
    """Names the colours of objects that were found."""

    def name(self, image: np.ndarray, found: Sequence[Detection], labels: set[str]) -> list[Detection]:
        """The same detections, those of ``labels`` with a colour."""
        ...
