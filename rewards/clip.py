"""CLIP's two towers, as several rewards use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from dina.rewards.extras import load_pretrained, pick_device


class Clip:
    """A transformers CLIP model, loaded when it is first used.

    Args:
        model: hub name or folder.
        processor: hub name or folder of the processor, where a model comes without one.
        device: a torch device; by default a GPU if there is one.
        batch_size: pictures or texts per forward pass.
    """

    def __init__(
        self, model: str, processor: str | None = None, device: str | None = None, batch_size: int = 32
    ) -> None:
        self.model, self.processor = model, processor or model
        self.device, self.batch_size = device, batch_size

    def images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Embeddings ``[N, D]`` of unit length, float32 on the CPU."""
        return self._embed(
            "get_image_features", pictures, lambda part: {"images": [p.convert("RGB") for p in part]}
        )

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings ``[N, D]`` of unit length, float32 on the CPU; what exceeds the model's length is cut."""
        return self._embed(
            "get_text_features", texts, lambda part: {"text": part, "padding": True, "truncation": True}
        )

    @property
    def temperature(self) -> float:
        """The learned factor on cosines, ``exp(logit_scale)``."""
        return float(self._loaded[0].logit_scale.exp())

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoProcessor  # heavy: when the first picture comes

        model = load_pretrained(AutoModel, self.model, dtype=torch.float32)
        return model.to(pick_device(self.device)).eval(), load_pretrained(AutoProcessor, self.processor)

    @torch.inference_mode()
    def _embed(self, tower: str, things: Sequence[Any], as_arguments: Any) -> torch.Tensor:
        model, processor = self._loaded
        found = []
        for start in range(0, len(things), self.batch_size):
            part = list(things[start : start + self.batch_size])
            inputs = processor(**as_arguments(part), return_tensors="pt").to(model.device)
            # transformers 5 answers with an output object; its pooler_output is the projected embedding.
            features = getattr(model, tower)(**inputs).pooler_output.float()
            found.append(features / features.norm(dim=-1, keepdim=True))
        return torch.cat(found).cpu()


def for_pictures(
    generated_images: Sequence[Image.Image | None],
    score: Callable[[Sequence[Image.Image], Sequence[int]], Sequence[float]],
) -> list[float | None]:
    """Scores of the rows that have a picture; ``score`` gets the pictures, RGB, and their rows."""
    pictures = [(i, image.convert("RGB")) for i, image in enumerate(generated_images) if image is not None]
    scores: list[float | None] = [None] * len(generated_images)
    if pictures:
        rows = [i for i, _ in pictures]
        for row, value in zip(rows, score([image for _, image in pictures], rows), strict=True):
            scores[row] = value
    return scores
