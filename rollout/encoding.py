"""What every engine does around the policy: prompts become streams, generations become samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dina.errors import DinaError
from dina.model.generation import Generation, GenerationRequest
from dina.model.processor import DinaProcessor
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.model.visual_tokenizer import DinaVisualTokenizer
from dina.rollout.protocol import Prompt, Request, Sample


class PromptCodec:
    """Encodes prompts and decodes what was drawn for them.

    Args:
        processor: text tokenizer and chat format.
        visual_tokenizer: reads the pictures of questions and paints the codes of drawings, on its own device.
        context_length: positions that the model can hold.
    """

    def __init__(
        self, processor: DinaProcessor, visual_tokenizer: DinaVisualTokenizer, context_length: int
    ) -> None:
        self.processor = processor
        self.visual_tokenizer = visual_tokenizer
        self.context_length = context_length

    def encode(self, requests: Sequence[Request], sampling: SamplingParams) -> list[GenerationRequest]:
        """The streams to continue, in the order of ``requests``.

        Raises:
            DinaError: a prompt does not fit the context, or asks about a picture and has none.
        """
        codes = self._read_pictures([request.prompt for request in requests])
        return [
            GenerationRequest(
                self._stream(request.prompt, codes.get(id(request.prompt.image)), sampling),
                request.seed,
                grid_of(request.prompt),
            )
            for request in requests
        ]

    def check_lengths(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuses prompts that do not fit with what follows them, before anything is drawn.

        Raises:
            DinaError: names the first prompt that is too long.
        """
        for prompt in prompts:
            self._stream(prompt, self._blank_codes(prompt), sampling)

    def samples(
        self, requests: Sequence[Request], generations: Sequence[Generation], version: int
    ) -> Iterator[Sample]:
        """Finished samples; ``generation.index`` says which of ``requests`` each answers."""
        drawings = [g for g in generations if requests[g.index].prompt.task == "t2i"]
        drawn = {g.index: self.processor.drawn_codes(g.stream) for g in drawings}
        codes = {i: c.to(self.visual_tokenizer.device) for i, c in drawn.items() if c is not None}
        with torch.no_grad():
            pictures = dict(zip(codes, self.visual_tokenizer.decode(list(codes.values())), strict=True))
        for generation in generations:
            request = requests[generation.index]
            sample = Sample(
                request=request,
                stream=generation.stream,
                logps=generation.logps,
                entropies=generation.entropies,
                weight_version=version,
                finish_reason=generation.finish_reason,
            )
            if request.prompt.task == "t2i":
                sample.image = to_uint8(pictures[generation.index])
            else:
                said = generation.stream.text_ids[0][generation.stream.actions[0, :, 0]]
                sample.text = self.processor.decode_text(said).strip()
            yield sample

    def _stream(self, prompt: Prompt, codes: Tensor | None, sampling: SamplingParams) -> TokenStream:
        if prompt.task == "t2i":
            assert prompt.grid is not None
            stream = self.processor.drawing_prompt(prompt.text, prompt.grid)
            new = prompt.grid[0] * (prompt.grid[1] + 1)
        else:
            assert codes is not None
            stream = self.processor.question_prompt(prompt.text, codes)
            new = sampling.max_new_tokens
        if stream.length + new > self.context_length:
            raise DinaError(
                f"prompt {prompt.id!r} needs {stream.length} positions and its answer {new}, but the "
                f"model's context holds {self.context_length}; shorten the prompt or lower the picture's grid"
            )
        return stream

    def _blank_codes(self, prompt: Prompt) -> Tensor | None:
        if prompt.image is None:
            return None
        token = self.visual_tokenizer.pixels_per_token
        height, width = (_nearest(extent, token) // token for extent in prompt.image.shape[:2])
        return torch.zeros(height, width, self.processor.levels, dtype=torch.long)

    def _read_pictures(self, prompts: Sequence[Prompt]) -> dict[int, Tensor]:
        """Codes of the prompts' pictures; prompts that share a picture are read once."""
        asked = {id(p.image): p for p in prompts if p.task == "vqa"}
        pictures = []
        for prompt in asked.values():
            if prompt.image is None:
                raise DinaError(f"prompt {prompt.id!r} asks about a picture but has none")
            picture = fitted(prompt.image, self.visual_tokenizer.pixels_per_token)
            pictures.append(torch.from_numpy(picture).permute(2, 0, 1).float() / 255)
        if not pictures:
            return {}
        with torch.no_grad():
            return dict(zip(asked, self.visual_tokenizer.encode(pictures), strict=True))


def grid_of(prompt: Prompt) -> tuple[int, int] | None:
    """The grid a request may draw on: none for questions, whose grid is that of the picture shown."""
    return prompt.grid if prompt.task == "t2i" else None


def fitted(picture: np.ndarray, token: int) -> np.ndarray:
    """A picture ``[H, W, 3]`` uint8 with sides that are multiples of ``token`` pixels: the nearest ones."""
    height, width = (_nearest(extent, token) for extent in picture.shape[:2])
    if picture.shape[:2] == (height, width):
        return picture
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def _nearest(extent: int, token: int) -> int:
    return max(token, (extent + token // 2) // token * token)


def to_uint8(picture: Tensor) -> np.ndarray:
    """``[3, H, W]`` in 0..1 to ``[H, W, 3]`` uint8."""
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
