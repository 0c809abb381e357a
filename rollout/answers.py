"""How probable a policy finds given answers: teacher-forced, by the log-probabilities that its engine reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dina.model.checkpoint import load_checkpoint
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rollout.protocol import Prompt, Request
from dina.rollout.torch_engine import TorchEngine


class AnswerScorer:
    """Reads a checkpoint, whose weights stay as they are.

    Args:
        model: checkpoint folder.
        batch_size: answers per forward pass.
        device: a torch device.

    Raises:
        DinaError: the folder is no DiNA checkpoint.
    """

    def __init__(self, model: str | Path, batch_size: int = 64, device: str | torch.device = "cpu") -> None:
        checkpoint = load_checkpoint(model, device=device)
        self.processor = checkpoint.processor
        self.engine = TorchEngine(checkpoint, batch_size)

    def log_probs(
        self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]
    ) -> list[float]:
        """Log-probability in nats of each answer, its end included; the three lists go together.

        Args:
            images: ``[H, W, 3]`` uint8; one that occurs more than once (the same object) is read once.

        Raises:
            DinaError: a question does not fit the model's context.
        """
        rows = enumerate(zip(images, questions, strict=True))
        asked = [Request(Prompt(f"question {i}", words, "vqa", image=image), i) for i, (image, words) in rows]
        ids = [[*self.processor.encode_text(answer), self.processor.eos] for answer in answers]
        sampling = SamplingParams(max_new_tokens=max(map(len, ids), default=1))
        prompts = self.engine.codec.encode(asked, sampling)
        streams = [_said(prompt.prompt, answer) for prompt, answer in zip(prompts, ids, strict=True)]
        return [float(logps.sum()) for logps in self.engine.probe(streams, sampling)]


def _said(prompt: TokenStream, ids: Sequence[int]) -> TokenStream:
    """A single-row prompt followed by an answer, whose tokens are actions."""
    answer = TokenStream.from_prompt(ids, torch.full((len(ids), prompt.levels), -1))
    answer.actions[..., 0] = True
    parts = ("text_ids", "codes", "attention_mask", "actions")
    return TokenStream(*(torch.cat([getattr(prompt, p), getattr(answer, p)], dim=1) for p in parts))
