"""GOT-OCR 2.0 (Wei et al. 2024): a vision language model that writes down what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from dina.rewards.extras import load_pretrained, pick_device

_END_OF_TURN = "<|im_end|>"


class GotOCREngine:
    """GOT-OCR 2.0 by transformers; for long, small or formatted text, on a GPU.

    Args:
        model: hub name or folder.
        max_new_tokens: longest text that is written down.
        formatted: ask for formulas and tables as markup.
        crop_to_patches: read large pictures piece by piece.
        batch_size: pictures per forward pass.
        device: a torch device; by default a GPU if there is one.
    """

    def __init__(
        self,
        model: str = "stepfun-ai/GOT-OCR-2.0-hf",
        max_new_tokens: int = 256,
        formatted: bool = False,
        crop_to_patches: bool = False,
        batch_size: int = 4,
        device: str | None = None,
    ) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.formatted, self.crop_to_patches = formatted, crop_to_patches
        self.batch_size, self.device = batch_size, device

    def read_many(self, images: Sequence[np.ndarray]) -> list[list[str]]:
        found: list[list[str]] = []
        for start in range(0, len(images), self.batch_size):
            found += self._read(images[start : start + self.batch_size])
        return found

    @torch.inference_mode()
    def _read(self, images: Sequence[np.ndarray]) -> list[list[str]]:
        model, processor = self._loaded
        vision = model.config.vision_config
        inputs = processor(
            [Image.fromarray(image) for image in images],
            format=self.formatted,
            crop_to_patches=self.crop_to_patches,
            # The projector halves the patches' grid twice.
            num_image_tokens=(vision.image_size // vision.patch_size // 4) ** 2,
            padding=True,
            return_tensors="pt",
        ).to(model.device, model.dtype)
        written = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=processor.tokenizer.convert_tokens_to_ids(_END_OF_TURN),
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        answers = processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [[line.strip() for line in answer.splitlines() if line.strip()] for answer in answers]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoProcessor, GotOcr2ForConditionalGeneration  # heavy

        device = pick_device(self.device)
        dtype = torch.float32 if device.type == "cpu" else "auto"
        model = load_pretrained(GotOcr2ForConditionalGeneration, self.model, dtype=dtype)
        processor = load_pretrained(AutoProcessor, self.model)
        processor.tokenizer.padding_side = "left"  # answers of a batch begin at the same place
        return model.to(device).eval(), processor
