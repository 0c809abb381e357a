"""Rendered text, read by a real OCR engine and compared by edit distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dina.rewards.ocr_engines import ENGINES, OCREngine
from dina.rewards.protocol import LogExtra, log_parts
from dina.rewards.registry import build_part
from dina.rewards.texts import TextScore, asked_texts, normalise, score_text


class OCRReward:
    """Reward: does the picture show the texts that were asked for, and no other?

    Args:
        ignore_case: compare without case.
        ignore_space: compare without white space.
        excess_cost: how much of the score surplus text can take, 0 (free) to 1.
        engine: ``rapidocr``, ``easyocr``, ``got_ocr``, where to import one from (``package.module:attr``), or an
            :class:`OCREngine`.
        engine_kwargs: passed to the engine, such as its languages or least confidence.

    Columns: ``text`` (list of strings); without it, the quoted words of the prompt. ``None`` where nothing is
    asked for. Parts: ``similarity``, ``matched``, ``in_order``, ``excess_text``.
    """

    def __init__(
        self,
        ignore_case: bool = True,
        ignore_space: bool = True,
        excess_cost: float = 1.0,
        engine: str | OCREngine | type = "rapidocr",
        engine_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= excess_cost <= 1:
            raise ValueError(f"excess_cost must be in [0, 1], not {excess_cost}")
        self.ignore_case, self.ignore_space = ignore_case, ignore_space
        self.excess_cost = excess_cost
        self.engine: OCREngine = build_part(engine, ENGINES, engine_kwargs, "OCR engine")

    def __call__(
        self,
        prompts: Sequence[str],
        generated_images: Sequence[Image.Image | None],
        text: Sequence[list[str] | str | None] | None = None,
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        wanted = [self.targets(p, t) for p, t in zip(prompts, text or [None] * len(prompts), strict=True)]
        pictures = [
            np.asarray(image.convert("RGB")) if image and targets else None
            for image, targets in zip(generated_images, wanted, strict=True)
        ]
        read = iter(self.engine.read_many([picture for picture in pictures if picture is not None]))
        scores: list[float | None] = []
        parts: list[dict[str, Any] | None] = []
        for picture, targets in zip(pictures, wanted, strict=True):
            if picture is None:
                scores.append(None)
                parts.append(None)
                continue
            lines = next(read)
            result = self.compare(lines, targets)
            scores.append(result.score)
            parts.append(result.parts | {"reason": f"read {_show(lines)}, wanted {_show(targets)}"})
        log_parts(log_extra, parts)
        return scores

    def targets(self, prompt: str, text: list[str] | str | None) -> list[str]:
        """The texts asked for: the row's own, or the quoted words of the prompt if the row has none."""
        return [target for target in asked_texts(prompt, text) if self._normalise(target)]

    def compare(self, lines: Sequence[str], targets: Sequence[str]) -> TextScore:
        read = [line for line in map(self._normalise, lines) if line]
        return score_text(read, [self._normalise(target) for target in targets], self.excess_cost)

    def read(self, image: np.ndarray) -> list[str]:
        """The lines of text in ``image`` (``[H, W, 3]`` uint8 RGB), in reading order."""
        return self.engine.read_many([image])[0]

    def _normalise(self, text: str) -> str:
        return normalise(text, self.ignore_case, self.ignore_space)


def _show(texts: Sequence[str]) -> str:
    return ", ".join(repr(text) for text in texts) or "nothing"
