"""Technical quality of a picture without any downloaded weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from dina.rewards.extras import require
from dina.rewards.protocol import LogExtra, log_parts

_LEAST_SIDE = 32


class ImageQualityReward:
    """Reward: freedom from noise, blur and compression by BRISQUE (Mittal et al. 2012): ``(100 - BRISQUE) / 100``.

    It says nothing about beauty or content. Clipped to 0..1; a picture of one colour, for which BRISQUE has no value,
    scores 0. ``None`` without a drawn picture. Part: ``brisque`` (0 good, 100 bad, beyond at times), where it has one.
    Pictures with a side below 32 px are enlarged to it. Needs the extra ``quality``, whose wheel brings the model.
    """

    def __init__(self) -> None:
        require("brisque", "quality", "the reward image_quality")

    def __call__(
        self,
        generated_images: Sequence[Image.Image | None],
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        values = [None if image is None else self._brisque(image) for image in generated_images]
        known = [None if value is None or math.isnan(value) else {"brisque": value} for value in values]
        log_parts(log_extra, known)
        return [None if value is None else quality_of(value) for value in values]

    def _brisque(self, image: Image.Image) -> float:
        picture = image.convert("RGB")
        factor = _LEAST_SIDE / min(picture.size)
        if factor > 1:
            size = (max(round(picture.width * factor), 1), max(round(picture.height * factor), 1))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(picture)
        if (pixels == pixels[0, 0]).all():
            return math.nan
        return float(self._model.score(pixels))

    @cached_property
    def _model(self) -> Any:
        from brisque import BRISQUE  # heavy: when the first picture comes

        return BRISQUE(url=False)


def quality_of(brisque: float) -> float:
    """BRISQUE as a reward in [0, 1]; NaN is the worst."""
    return 0.0 if math.isnan(brisque) else min(max((100 - brisque) / 100, 0.0), 1.0)
