"""What a reward server and its clients say to each other, in JSON.

``POST /v1/score`` takes a :class:`ScoreRequest` and gives a :class:`ScoreAnswer` with one result per sample. Pictures
are base64 texts of PNG files. A sample that cannot be scored has an ``error`` and does not hurt the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

TOKEN_VARIABLE = "DINA_REWARD_TOKEN"


class WireSample(BaseModel):
    """A sample: a picture or a text that answers ``prompt``, and the columns of the prompt's row."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = ""
    id: str = ""
    task: Literal["t2i", "vqa"] = "t2i"
    image: str | None = None
    text: str | None = None
    prompt_image: str | None = None
    completion_ids: list[int] = []
    columns: dict[str, JsonValue] = {}


class ScoreRequest(BaseModel):
    """``reward`` may be left out where the server has only one."""

    model_config = ConfigDict(extra="forbid")

    reward: str = ""
    samples: list[WireSample]
    step: int = 0


class WireResult(BaseModel):
    """``score`` null without ``error``: the reward does not apply to the sample."""

    model_config = ConfigDict(allow_inf_nan=False)

    score: float | None = None
    error: str | None = None
    parts: dict[str, JsonValue] = {}


class ScoreAnswer(BaseModel):
    """``metrics``: what the reward logged, by name."""

    model_config = ConfigDict(allow_inf_nan=False)

    results: list[WireResult]
    metrics: dict[str, float] = {}


def as_json(value: Any) -> JsonValue:
    """A sub-score as JSON has it: what JSON has no word for becomes ``None`` (NaN) or a short text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    return f"{value!r:.200}"
