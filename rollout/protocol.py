"""What the loop, the rewards and the engines exchange: prompts, requests and samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream

Task = Literal["t2i", "vqa"]


@dataclass
class Prompt:
    """One row of a prompt file.

    Attributes:
        id: unique within its file.
        text: what the user says: a picture's description, or a question.
        task: ``t2i`` (draw ``text``) or ``vqa`` (answer ``text`` about ``image``).
        grid: (rows, columns) in visual tokens of the picture to draw.
        image: ``[H, W, 3]`` uint8, the picture that a question is about.
        columns: every other column of the row (``tag``, ``include``, ``answer``, …), handed to the rewards.
    """

    id: str
    text: str
    task: Task = "t2i"
    grid: tuple[int, int] | None = None
    image: np.ndarray | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        return str(self.columns.get("tag", self.task))


@dataclass
class Request:
    """One sample to draw. All randomness comes from ``seed``, so any worker gives the same sample."""

    prompt: Prompt
    seed: int
    group: int = 0
    index: int = 0


@dataclass
class Sample:
    """A finished rollout.

    Attributes:
        stream: a single row without padding, prompt included.
        logps: ``[T, C]`` float32, log-probability of each action under the sampled distribution, 0 elsewhere.
        entropies: ``[T, C]`` float32, entropy in nats of the distribution each action was drawn from.
        image: ``[H, W, 3]`` uint8, the decoded picture of a ``t2i`` request.
        text: the answer of a ``vqa`` request, without special tokens.
        weight_version: number of the update whose weights drew the sample.
        finish_reason: ``stop`` (ended by itself) or ``length`` (cut at ``max_new_tokens``).
    """

    request: Request
    stream: TokenStream
    logps: Tensor
    entropies: Tensor
    image: np.ndarray | None = None
    text: str | None = None
    weight_version: int = 0
    finish_reason: Literal["stop", "length"] = "stop"

    @property
    def prompt(self) -> Prompt:
        return self.request.prompt


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on nothing but ``parts``, on any machine."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class RolloutEngine(Protocol):
    """Draws samples from the policy. Samples are yielded as they finish, in any order."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Sample]: ...

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replaces the named weights; samples drawn afterwards carry ``version``."""
        ...

    def close(self) -> None: ...
