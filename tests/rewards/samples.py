"""Rollouts to score, without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dina.model.stream import TokenStream
from dina.rollout.protocol import Prompt, Request, Sample

GREY = np.full((8, 8, 3), 200, dtype=np.uint8)


def picture(image: np.ndarray = GREY, prompt: str = "a star", group: int = 0, **columns: Any) -> Sample:
    """A finished text-to-image sample that shows ``image``."""
    row = Prompt(id=f"p{group}", text=prompt, task="t2i", grid=(1, 1), columns=columns)
    return _sample(row, group, image=image)


def answer(text: str, question: str = "How many?", **columns: Any) -> Sample:
    """A finished question-answering sample."""
    prompt = Prompt(id="q0", text=question, task="vqa", image=GREY, columns=columns)
    return _sample(prompt, 0, text=text)


def _sample(prompt: Prompt, group: int, **found: Any) -> Sample:
    actions = torch.zeros(1, 4, 3, dtype=torch.bool)
    actions[0, 2:, 0] = True
    stream = TokenStream(
        text_ids=torch.arange(10, 14)[None],
        codes=torch.full((1, 4, 2), -1),
        attention_mask=torch.ones(1, 4, dtype=torch.long),
        actions=actions,
    )
    zeros = torch.zeros(4, 3)
    return Sample(Request(prompt, seed=0, group=group), stream, logps=zeros, entropies=zeros, **found)
