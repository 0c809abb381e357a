"""How a DiNA request travels through vLLM: what rides on its sampling parameters, and what comes back in band.

vLLM knows one token id per position and a row of log-probability columns. An image position has ``L`` codes, so

* the worker keeps the codes of a request by position (``RowState``) and gives each image position a token id
  outside the vocabulary that is a hash of its codes: blocks of the prefix cache are keyed by token ids, and
  with the hash two pictures never share one;
* of the ``2 L`` columns of a sampled position, the ids of the first ``L`` carry the codes, their values the
  log-probabilities, and the values of the last ``L`` the entropies. A text token uses columns 0 and ``L``.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dina.model.config import DinaConfig
from dina.model.generation import Generation, GenerationRequest
from dina.model.layout import ImageLayout
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream

KEY = "dina"
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Vocabulary:
    """What the two ends of the wire must agree on: ids with a meaning, and ids of image positions."""

    layout: ImageLayout
    levels: int
    codebook_sizes: tuple[int, ...]
    first_code_id: int
    eos: int | None

    @property
    def cut(self) -> int:
        """Ends an answer that has used up ``max_new_tokens``. vLLM never sees the pad id otherwise: it is no
        text, and patches have ids of their own."""
        return self.layout.pad

    @classmethod
    def of(cls, config: DinaConfig) -> Vocabulary:
        return cls(
            ImageLayout.of(config),
            config.levels,
            tuple(config.codebook_sizes),
            config.text_config.vocab_size,  # type: ignore[union-attr]
            config.eos_token_id,
        )

    def code_ids(self, codes: Tensor) -> Tensor:
        """Token ids ``[N]`` of image positions with ``codes`` ``[N, L]``; equal for equal codes alone.

        A mixed-radix number while it fits 31 bits, a hash of it where it does not.
        """
        room = LARGEST_ID - self.first_code_id
        number = torch.zeros_like(codes[:, 0])
        for level, size in enumerate(self.codebook_sizes):
            number = (number * size + codes[:, level]) % room
        return number + self.first_code_id

    def stop_ids(self, request: GenerationRequest) -> list[int]:
        """The ids after which vLLM ends the request, as ``dina.model.generation`` would."""
        stops = [self.cut]
        if self.eos is not None:
            stops.append(self.eos)
        if self.draws(request):
            stops.append(self.layout.end)
        elif request.grid is None:
            stops.append(self.layout.start)
        return stops

    def draws(self, request: GenerationRequest) -> bool:
        return int(request.prompt.text_ids[0, -1]) == self.layout.start

    def longest(self, request: GenerationRequest, sampling: SamplingParams) -> int:
        """The most positions that the request can add."""
        picture = request.grid[0] * (request.grid[1] + 1) if request.grid else 0
        return picture if self.draws(request) else sampling.max_new_tokens * (1 + picture)


def pack(
    request: GenerationRequest, sampling: SamplingParams, forced: TokenStream | None = None
) -> dict[str, Any]:
    """The ``extra_args`` of a request: plain values and bytes, so that any transport of vLLM carries them.

    Args:
        forced: the whole stream whose actions are scored instead of drawing new ones.
    """
    fields: dict[str, Any] = {"grid": request.grid, "sampling": asdict(sampling)}
    if bool((request.prompt.codes >= 0).any()):
        fields["codes"] = _to_bytes(request.prompt.codes[0])
    if forced is not None:
        start = request.prompt.length
        text = forced.text_ids[0, start:].masked_fill(~forced.actions[0, start:, 0], -1)
        fields["forced"] = _to_bytes(torch.cat([text[:, None], forced.codes[0, start:]], 1))
    return {KEY: fields}


def cache_salt(prompt: TokenStream) -> str | None:
    """Keeps the prefix cache from taking one picture for another: prompts show vLLM only their pad ids."""
    codes = prompt.codes[0]
    if not bool((codes >= 0).any()):
        return None
    return hashlib.blake2b(_to_bytes(codes), digest_size=16).hexdigest()


class RowState:
    """What the worker knows about one request beyond vLLM's own record of it.

    It moves one position at a time, when that position is sampled; a preempted request is computed anew from
    the codes kept here, without sampling anything again.

    Attributes:
        codes: ``[P, L]`` int32 by absolute position, -1 where there is no image patch.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt_ids: list[int],
        seed: int,
        fields: dict[str, Any] | None,
        sampling: SamplingParams,
    ) -> None:
        fields = fields or {}
        self.vocabulary, self.seed, self.sampling = vocabulary, seed, sampling
        if "sampling" in fields:
            values: dict[str, Any] = fields["sampling"]
            # Some transports make lists of tuples.
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            self.sampling = SamplingParams(**values)
        grid = fields.get("grid")
        self.grid: tuple[int, int] | None = (grid[0], grid[1]) if grid else None
        self.drawing = self.grid is not None and prompt_ids[-1] == vocabulary.layout.start
        self.image_step = self.texts = 0
        self.prompt_length = len(prompt_ids)
        self.codes = np.full((len(prompt_ids) + 64, vocabulary.levels), -1, np.int32)
        self.has_codes = "codes" in fields
        if self.has_codes:
            given = np.frombuffer(fields["codes"], np.int32).reshape(-1, vocabulary.levels)
            self.codes[: len(given)] = given
        self.forced: np.ndarray | None = None
        if "forced" in fields:
            self.forced = np.frombuffer(fields["forced"], np.int32).reshape(-1, 1 + vocabulary.levels)

    @property
    def kind(self) -> Literal["text", "patch", "layout", "cut"]:
        """What the next position holds: a sampled token, sampled codes, or a token that is set."""
        if self.drawing:
            return "patch" if self.layout_token == self.vocabulary.layout.pad else "layout"
        return "cut" if self.texts >= self.sampling.max_new_tokens else "text"

    @property
    def layout_token(self) -> int:
        assert self.grid is not None
        return self.vocabulary.layout.drawn_step(self.image_step, *self.grid)

    def add_text(self, token: int) -> None:
        self.texts += 1
        if token == self.vocabulary.layout.start and self.grid is not None:
            self.drawing, self.image_step = True, 0

    def add_patch(self, position: int, codes: np.ndarray) -> None:
        if position >= len(self.codes):
            self.codes = np.concatenate([self.codes, np.full_like(self.codes, -1)])
        self.codes[position] = codes
        self.has_codes = True
        self.image_step += 1

    def add_layout(self) -> None:
        self.drawing = self.layout_token != self.vocabulary.layout.end
        self.image_step += 1

    def forced_at(self, position: int) -> np.ndarray | None:
        """``[C]`` what must be "sampled" at ``position``, -1 on channels without an action."""
        step = position - self.prompt_length
        return None if self.forced is None or step >= len(self.forced) else self.forced[step]


def unpack(
    index: int,
    request: GenerationRequest,
    vocabulary: Vocabulary,
    token_ids: list[int],
    column_ids: list[int],
    columns: list[float],
) -> Generation:
    """The generation that vLLM's output stands for; columns are flat, ``2 L`` per position."""
    layout, levels = vocabulary.layout, vocabulary.levels
    count = len(token_ids) - (token_ids[-1] == vocabulary.cut)
    tokens = torch.tensor(token_ids[:count])
    drawn = torch.tensor(column_ids).view(-1, 2 * levels)[:count, :levels]
    values = torch.tensor(columns).view(-1, 2, levels)[:count]
    is_patch = tokens >= vocabulary.first_code_id
    is_text = ~is_patch & (tokens != layout.newline) & (tokens != layout.end)
    prompt = request.prompt
    stream = TokenStream(
        text_ids=torch.cat([prompt.text_ids[0], tokens.masked_fill(is_patch, layout.pad)])[None],
        codes=torch.cat([prompt.codes[0], drawn.masked_fill(~is_patch[:, None], -1)])[None],
        attention_mask=prompt.attention_mask.new_ones(1, prompt.length + count),
        actions=torch.cat(
            [prompt.actions[0], torch.cat([is_text[:, None], is_patch[:, None].expand(-1, levels)], 1)]
        )[None],
    )

    def channels(values: Tensor) -> Tensor:
        both = torch.cat([values[:, :1] * is_text[:, None], values.masked_fill(~is_patch[:, None], 0.0)], 1)
        return torch.cat([both.new_zeros(prompt.length, 1 + levels), both])

    stopped = token_ids[-1] != vocabulary.cut and token_ids[-1] in vocabulary.stop_ids(request)
    return Generation(
        index,
        stream,
        channels(values[:, 0]),
        channels(values[:, 1]),
        "stop" if stopped else "length",
    )


def _to_bytes(array: Tensor) -> bytes:
    return array.to(torch.int32).numpy().tobytes()
