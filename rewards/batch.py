"""The arguments of rewards: rollouts turned into TRL's keyword lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from dina.rollout.protocol import Prompt, Sample

_ALWAYS = {"prompts", "completions", "completion_ids", "log_extra", "log_metric", "trainer_state"}
_NOT_COLUMNS = _ALWAYS | {"prompt", "completion", "generated_images", "images"}


@dataclass
class RewardSample:
    """What a reward can see of a sample, where no policy drew it: from a file, or over the network."""

    prompt: Prompt
    image: np.ndarray | None = None
    text: str | None = None
    completion_ids: list[int] = field(default_factory=list)
    group: int = 0


AnySample = Sample | RewardSample


class RewardBatch:
    """Samples as rewards see them.

    Pictures are made anew for every call, so no reward can spoil those of another.
    """

    def __init__(self, samples: Sequence[AnySample], step: int = 0) -> None:
        self.samples = samples
        self.groups = [s.group if isinstance(s, RewardSample) else s.request.group for s in samples]
        self.trainer_state = SimpleNamespace(global_step=step)
        names = dict.fromkeys(name for sample in samples for name in sample.prompt.columns)
        self.columns = [name for name in names if name not in _NOT_COLUMNS]

    def applicable(self, required: Iterable[str], tasks: Sequence[str] | None) -> list[int]:
        """Rows of one of ``tasks`` (``None``: any) that have a value for each ``required`` argument."""
        names = [name for name in required if name not in _ALWAYS]
        return [
            row
            for row, sample in enumerate(self.samples)
            if (tasks is None or sample.prompt.task in tasks)
            and all(_value(sample, name) is not None for name in names)
        ]

    def arguments(self, rows: Sequence[int], accepted: Iterable[str] | None) -> dict[str, Any]:
        """Keyword lists of the given rows; ``accepted`` limits them to these names (``None``: all)."""
        every = [*_READERS, *self.columns]
        wanted = set([*every, "trainer_state"] if accepted is None else accepted)
        found: dict[str, Any] = {
            name: [_value(self.samples[row], name) for row in rows] for name in every if name in wanted
        }
        if "trainer_state" in wanted:
            found["trainer_state"] = self.trainer_state
        return found


def _value(sample: AnySample, name: str) -> Any:
    reader = _READERS.get(name)
    return reader(sample) if reader else sample.prompt.columns.get(name)


def _completion(sample: AnySample) -> list[dict[str, Any]]:
    content: Any = sample.text or ""
    if sample.image is not None:
        content = [{"type": "image", "image": Image.fromarray(sample.image)}]
    return [{"role": "assistant", "content": content}]


def _completion_ids(sample: AnySample) -> list[int]:
    if isinstance(sample, RewardSample):
        return sample.completion_ids
    sampled = sample.stream.actions[0].any(dim=-1)
    return sample.stream.text_ids[0][sampled].tolist()


_READERS: dict[str, Callable[[AnySample], Any]] = {
    "prompts": lambda sample: sample.prompt.text,
    "completions": _completion,
    "completion_ids": _completion_ids,
    "generated_images": lambda sample: None if sample.image is None else Image.fromarray(sample.image),
    "images": lambda sample: None if sample.prompt.image is None else [Image.fromarray(sample.prompt.image)],
    "id": lambda sample: sample.prompt.id,
    "task": lambda sample: sample.prompt.task,
    "tag": lambda sample: sample.prompt.tag,
}
GIVEN = _ALWAYS | _READERS.keys()
"""Arguments that rewards get whatever the columns of the prompts, and that a recipe does not set."""
