"""The reward of the digits: a small classifier of our own reads what was drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

SIDE = 8


class ReadsDigit:
    """Reward: the probability of the digit that was asked for.

    Args:
        classifier: file of a classifier that ``python -m dina.recipes.digits.build`` trained.
        strict: 1 where that digit is the likeliest one, else 0.
    """

    requires = ("digit",)

    def __init__(self, classifier: str, strict: bool = False) -> None:
        self.classifier, self.strict = classifier, strict

    def setup(self) -> None:
        with np.load(self.classifier) as file:
            self.weights = [file[name] for name in ("hidden", "hidden_bias", "output", "output_bias")]

    def __call__(
        self,
        generated_images: Sequence[Image.Image],
        digit: Sequence[int],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float]:
        shares = self.probabilities(np.stack([features(image) for image in generated_images]))
        read = shares.argmax(axis=1)
        if log_extra:
            log_extra("reason", [f"read as {number}" for number in read])
        wanted = np.array(digit)
        return (
            ((read == wanted) if self.strict else shares[np.arange(len(wanted)), wanted])
            .astype(float)
            .tolist()
        )

    def probabilities(self, ink: np.ndarray) -> np.ndarray:
        """``[N, 64]`` of ink to ``[N, 10]`` probabilities: one hidden layer, then a softmax."""
        hidden, hidden_bias, output, output_bias = self.weights
        logits = np.maximum(ink @ hidden + hidden_bias, 0) @ output + output_bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def features(image: Image.Image) -> np.ndarray:
    """``[64]``: the ink on an 8x8 grid, 0 (paper) to 1."""
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return 1 - np.asarray(small, dtype=np.float64).ravel() / 255
