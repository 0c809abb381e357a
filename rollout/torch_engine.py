"""The reference rollout engine: generation in plain torch, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dina.errors import DinaError
from dina.model.checkpoint import Checkpoint
from dina.model.generation import Generation, GenerationRequest, generate
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rollout.protocol import Prompt, Request, Sample


class TorchEngine:
    """Draws samples with the model of a checkpoint.

    Args:
        checkpoint: its model is used as it is, so a trainer in the same process may share it; then
            ``update_weights`` only stamps the version.
        batch_size: requests drawn at once.
        dtype: ``bfloat16`` computes under autocast; the weights stay as they are.
    """

    def __init__(self, checkpoint: Checkpoint, batch_size: int = 64, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.model = checkpoint.model
        self.processor = checkpoint.processor
        self.visual_tokenizer = checkpoint.visual_tokenizer
        self.batch_size = batch_size
        self.version = 0

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Sample]:
        """Yields each sample when it is finished.

        Raises:
            DinaError: a prompt does not fit the context.
        """
        training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(requests), self.batch_size):
                batch = requests[start : start + self.batch_size]
                prompts = self._encode([request.prompt for request in batch], sampling)
                inputs = [
                    GenerationRequest(prompt, request.seed, grid_of(request.prompt))
                    for prompt, request in zip(prompts, batch, strict=True)
                ]
                with autocast(self.model.device, self.dtype):
                    generations = list(generate(self.model, inputs, sampling))
                yield from self._samples(batch, generations)
        finally:
            self.model.train(training)

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies the named tensors into the model; tensors that are the model's own are left alone."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors:
                if name not in own:
                    raise DinaError(f"weight update: the model has no parameter {name}")
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        self.version = version

    def close(self) -> None:
        """Nothing to release."""

    def check_lengths(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuses prompts that do not fit with what follows them, before anything is drawn.

        Raises:
            DinaError: names the first prompt that is too long.
        """
        for prompt in prompts:
            self._stream(prompt, self._blank_codes(prompt), sampling)

    def _encode(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[TokenStream]:
        codes = self._read_pictures(prompts)
        return [self._stream(prompt, codes.get(id(prompt)), sampling) for prompt in prompts]

    def _stream(self, prompt: Prompt, codes: Tensor | None, sampling: SamplingParams) -> TokenStream:
        if prompt.task == "t2i":
            assert prompt.grid is not None
            stream = self.processor.drawing_prompt(prompt.text, prompt.grid)
            new = prompt.grid[0] * (prompt.grid[1] + 1)
        else:
            assert codes is not None
            stream = self.processor.question_prompt(prompt.text, codes)
            new = sampling.max_new_tokens
        limit = self.model.config.text_config.max_position_embeddings
        if stream.length + new > limit:
            raise DinaError(
                f"prompt {prompt.id!r} needs {stream.length} positions and its answer {new}, but the "
                f"model's context holds {limit}; shorten the prompt or lower the picture's grid"
            )
        return stream

    def _blank_codes(self, prompt: Prompt) -> Tensor | None:
        if prompt.image is None:
            return None
        token = self.visual_tokenizer.pixels_per_token
        height, width = prompt.image.shape[0] // token, prompt.image.shape[1] // token
        return torch.zeros(height, width, self.processor.levels, dtype=torch.long)

    def _read_pictures(self, prompts: Sequence[Prompt]) -> dict[int, Tensor]:
        """Codes of the prompts' pictures; prompts that share a picture are read once."""
        asked = {id(p): p for p in prompts if p.task == "vqa"}
        pictures = []
        for prompt in asked.values():
            if prompt.image is None:
                raise DinaError(f"prompt {prompt.id!r} asks about a picture but has none")
            pictures.append(torch.from_numpy(prompt.image).permute(2, 0, 1).float() / 255)
        if not pictures:
            return {}
        with torch.no_grad():
            return dict(zip(asked, self.visual_tokenizer.encode(pictures), strict=True))

    def _samples(self, batch: Sequence[Request], generations: Sequence[Generation]) -> Iterator[Sample]:
        drawings = [g for g in generations if batch[g.index].prompt.task == "t2i"]
        drawn = {g.index: self.processor.drawn_codes(g.stream) for g in drawings}
        codes = {i: c.to(self.model.device) for i, c in drawn.items() if c is not None}
        with torch.no_grad():
            pictures = dict(zip(codes, self.visual_tokenizer.decode(list(codes.values())), strict=True))
        for generation in generations:
            request = batch[generation.index]
            sample = Sample(
                request=request,
                stream=generation.stream,
                logps=generation.logps,
                entropies=generation.entropies,
                weight_version=self.version,
                finish_reason=generation.finish_reason,
            )
            if request.prompt.task == "t2i":
                sample.image = to_uint8(pictures[generation.index])
            else:
                said = generation.stream.text_ids[0][generation.stream.actions[0, :, 0]]
                sample.text = self.processor.decode_text(said).strip()
            yield sample


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Mixed precision for sampler and trainer alike; ``float32`` is none. Weights and optimizer stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def grid_of(prompt: Prompt) -> tuple[int, int] | None:
    """The grid a request may draw on: none for questions, whose grid is that of the picture shown."""
    return prompt.grid if prompt.task == "t2i" else None


def to_uint8(picture: Tensor) -> np.ndarray:
    """``[3, H, W]`` in 0..1 to ``[H, W, 3]`` uint8."""
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
