"""Colours of detected objects by CLIP zero-shot, as GenEval reads them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from dina.rewards.clip import Clip
from dina.rewards.detection import Detection

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_BACKGROUND = "#999999"
_TEMPLATES = (
    "a photo of a {color} {label}",
    "a photo of a {color}-colored {label}",
    "a photo of a {color} object",
)


class ClipColors:
    """Names the colour of objects: the crop's nearest among ten colours in three wordings.

    As in GenEval, the crop is the box, and what lies outside the object's mask (where the detector gives one) is
    painted grey before it is cut out.

    Args:
        model: hub name or folder of a CLIP model; GenEval's is ViT-L/14.
        device: a torch device; by default a GPU if there is one.
        batch_size: crops per forward pass.
    """

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        self.clip = Clip(model, device=device, batch_size=batch_size)
        self._classifiers: dict[str, torch.Tensor] = {}

    def name(self, image: np.ndarray, found: Sequence[Detection], labels: Collection[str]) -> list[Detection]:
        """The detections with a colour wherever their label is one of ``labels``; ``image`` is ``[H, W, 3]`` uint8."""
        asked = [i for i, d in enumerate(found) if d.label in labels and _has_area(d)]
        named = list(found)
        if asked:
            crops = self.clip.images([crop(image, found[i]) for i in asked])
            for i, embedding in zip(asked, crops, strict=True):
                best = int((self._classifier(found[i].label) @ embedding).argmax())
                named[i] = replace(found[i], color=COLORS[best])
        return named

    def _classifier(self, label: str) -> torch.Tensor:
        """``[10, D]``: per colour the mean of its wordings, of unit length."""
        if label not in self._classifiers:
            texts = [t.format(color=color, label=label) for color in COLORS for t in _TEMPLATES]
            mean = self.clip.texts(texts).reshape(len(COLORS), len(_TEMPLATES), -1).mean(dim=1)
            self._classifiers[label] = mean / mean.norm(dim=-1, keepdim=True)
        return self._classifiers[label]


def crop(image: np.ndarray, detection: Detection) -> Image.Image:
    """The object's box, with the background painted over where the detection has a mask."""
    picture = Image.fromarray(image)
    if detection.mask is not None:
        blank = Image.new("RGB", picture.size, _BACKGROUND)
        picture = Image.composite(picture, blank, Image.fromarray(detection.mask.astype(np.uint8) * 255))
    x0, y0, x1, y1 = detection.box
    left, top = round(x0), round(y0)
    return picture.crop((left, top, max(round(x1), left + 1), max(round(y1), top + 1)))


def _has_area(detection: Detection) -> bool:
    x0, y0, x1, y1 = detection.box
    return x1 > x0 and y1 > y0
