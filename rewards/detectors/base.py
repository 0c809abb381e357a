"""What detectors with pretrained weights share: loading, batches, thresholds, and which boxes are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from dina.rewards.detection import Box, Detection
from dina.rewards.extras import load_pretrained, pick_device

Names = Sequence[str]


class PretrainedDetector(ABC):
    """A detector from a transformers checkpoint, loaded when the first picture comes.

    The thresholds are GenEval's (Ghosh et al. 2023), which were set for Mask2Former.

    Args:
        model: hub name or folder.
        threshold: boxes with a lower score are not objects.
        counting_threshold: the same where a prompt asks for a number of objects.
        nms: of two boxes of a class that overlap at least this much (intersection over union) the better one is
            kept; 1.0 keeps both.
        max_objects: at most so many objects of a class.
        batch_size: pictures per forward pass.
        device: a torch device; by default a GPU if there is one.
    """

    default_model: str
    auto_model: str
    """Name of the transformers class that loads the checkpoint."""
    auto_processor = "AutoImageProcessor"

    def __init__(
        self,
        model: str | None = None,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        nms: float = 1.0,
        max_objects: int = 16,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        for name, value in (
            ("threshold", threshold),
            ("counting_threshold", counting_threshold),
            ("nms", nms),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {value}")
        self.model = model or self.default_model
        self.threshold, self.counting_threshold = threshold, counting_threshold
        self.nms, self.max_objects = nms, max_objects
        self.batch_size, self.device = batch_size, device

    def detect_many(self, images: Sequence[np.ndarray], names: Sequence[Names]) -> list[list[Detection]]:
        """Objects of each picture (``[H, W, 3]`` uint8 RGB), best first.

        ``names`` holds the class names that matter for each picture; a detector with a fixed set of classes
        ignores them.
        """
        found: list[list[Detection]] = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            pictures = [Image.fromarray(image) for image in images[part]]
            with torch.inference_mode():
                raw = self._infer(pictures, names[part])
            found += [keep_best(boxes, self.nms, self.max_objects) for boxes in raw]
        return found

    @abstractmethod
    def _infer(self, pictures: list[Image.Image], names: Sequence[Names]) -> list[list[Detection]]:
        """Everything with a score above ``threshold``."""

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model, on its device, and its processor (of texts and pictures, or of pictures alone)."""
        import transformers  # heavy: when the first picture comes

        model = load_pretrained(getattr(transformers, self.auto_model), self.model, dtype=torch.float32)
        processor = load_pretrained(getattr(transformers, self.auto_processor), self.model)
        return model.to(pick_device(self.device)).eval(), processor


def keep_best(found: Sequence[Detection], nms: float = 1.0, max_objects: int = 16) -> list[Detection]:
    """The best ``max_objects`` of each class, without those that a better one of their class covers.

    GenEval's order: first the limit, then the suppression. Equal scores keep their order. Best first.
    """
    kept: list[Detection] = []
    ranked = sorted(found, key=lambda d: -d.score)
    for label in dict.fromkeys(d.label for d in ranked):
        mine: list[Detection] = []
        for candidate in [d for d in ranked if d.label == label][:max_objects]:
            if nms >= 1.0 or all(overlap(candidate.box, better.box) < nms for better in mine):
                mine.append(candidate)
        kept += mine
    return sorted(kept, key=lambda d: -d.score)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0.0 if both are empty."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    common = width * height
    union = _area(a) + _area(b) - common
    return common / union if union > 0 else 0.0


def clipped(box: Sequence[float], picture: Image.Image) -> Box:
    """The part of a box inside the picture."""
    width, height = picture.size
    x0, y0, x1, y1 = (float(value) for value in box)
    return (min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height))


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
