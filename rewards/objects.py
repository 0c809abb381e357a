"""Objects, colours and positions in a picture, scored by GenEval's rules whatever detector reads the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from dina.rewards.geneval import SceneScore, score_scene
from dina.rewards.protocol import LogExtra, log_parts
from dina.rewards.registry import load_object

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One object that a detector saw.

    Attributes:
        label: class name as the prompts spell it, or ``unknown`` for a thing that is no class.
        color: colour name, ``None`` if the detector does not read colours.
        box: ``(x0, y0, x1, y1)`` in pixels, y downwards.
        score: confidence; the best boxes of a class are compared first.
    """

    label: str
    color: str | None
    box: Box
    score: float = 1.0


class Detector(Protocol):
    """Reads a picture's pixels, and nothing else: no prompt, no wish."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        """``image``: ``[H, W, 3]`` uint8 RGB."""
        ...


class ObjectsReward:
    """Reward: does the picture hold what the row's ``include`` asks for, and nothing else?

    Args:
        detector: a :class:`Detector`, its class, or where to import one from (``package.module:attr``).
        mode: ``graded`` (partial credit, default for training) or ``strict`` (1 or 0, the benchmark's rule).
        detector_kwargs: passed to the detector if it is a class.

    Columns: ``include``, ``exclude``. ``None`` for a row without ``include`` or without a drawn picture.
    Parts: ``count``, ``color``, ``position``, ``precision``, ``excess_objects``, ``strict``.
    """

    def __init__(
        self,
        detector: str | Detector | type = "dina.recipes.scenes.detector:ShapeDetector",
        mode: Literal["strict", "graded"] = "graded",
        detector_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if mode not in ("strict", "graded"):
            raise ValueError(f"mode must be 'strict' or 'graded', not {mode!r}")
        found = load_object(detector) if isinstance(detector, str) else detector
        self.detector: Detector = found(**(detector_kwargs or {})) if isinstance(found, type) else found
        self.mode = mode

    def __call__(
        self,
        generated_images: Sequence[Image.Image | None],
        include: Sequence[list[dict[str, Any]] | None],
        exclude: Sequence[list[dict[str, Any]] | None] | None = None,
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        excludes = exclude or [None] * len(include)
        scenes = [
            self.score(np.asarray(image.convert("RGB")), wanted, unwanted or ()) if image and wanted else None
            for image, wanted, unwanted in zip(generated_images, include, excludes, strict=True)
        ]
        log_parts(log_extra, [s.parts | {"reason": s.reason} if s else None for s in scenes])
        return [getattr(scene, self.mode) if scene else None for scene in scenes]

    def score(
        self,
        image: np.ndarray,
        include: Sequence[Mapping[str, Any]],
        exclude: Sequence[Mapping[str, Any]] = (),
    ) -> SceneScore:
        """``image``: ``[H, W, 3]`` uint8."""
        return score_scene(self.detector.detect(image), include, exclude)
