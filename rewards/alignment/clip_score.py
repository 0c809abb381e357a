"""CLIPScore: how near a picture and its prompt are to each other in CLIP's space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from dina.rewards.clip import Clip, for_pictures
from dina.rewards.protocol import LogExtra, log_parts


class CLIPScoreReward:
    """Reward: ``weight * max(cos(picture, prompt), 0)`` (CLIPScore; Hessel et al. 2021, equation 1).

    With the default weight of 2.5 most pairs lie between 0 and 1. ``None`` without a drawn picture. Part: ``cosine``.

    Args:
        model: hub name or folder of a CLIP model; the paper's is ViT-B/32.
        weight: factor on the cosine.
        prefix: put before the prompt, as the paper does.
        batch_size: pictures per forward pass.
        device: a torch device; by default a GPU if there is one.
    """

    def __init__(
        self,
        model: str = "openai/clip-vit-base-patch32",
        weight: float = 2.5,
        prefix: str = "A photo depicts ",
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        self.clip = Clip(model, device=device, batch_size=batch_size)
        self.weight, self.prefix = weight, prefix

    def __call__(
        self,
        prompts: Sequence[str],
        generated_images: Sequence[Image.Image | None],
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        def cosine(pictures: Sequence[Image.Image], rows: Sequence[int]) -> list[float]:
            texts = self.clip.texts([self.prefix + prompts[i] for i in rows])
            return (self.clip.images(pictures) * texts).sum(dim=-1).tolist()

        found = for_pictures(generated_images, cosine)
        log_parts(log_extra, [None if value is None else {"cosine": value} for value in found])
        return [None if value is None else self.weight * max(value, 0.0) for value in found]
