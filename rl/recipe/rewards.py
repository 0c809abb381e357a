"""The recipe's entries under ``rewards:``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from dina.errors import advice
from dina.rewards.protocol import RewardSpec
from dina.rewards.registry import available_rewards
from dina.rl.recipe.cluster import RewardResources
from dina.rl.recipe.section import Section


class RewardConfig(Section):
    use: str = Field(
        min_length=1,
        description="built-in name, entry point of dina.rewards, package.module:attr, or ./file.py:attr",
    )
    name: str = Field("", description="what metrics call it; by default the last part of `use`")
    weight: float = Field(1.0, description="factor in the sum; 0 logs the reward and never trains on it")
    required: bool = Field(False, description="a failed score stops the run")
    on_error: Literal["exclude", "raise"] = Field(
        "exclude", description="leave a sample with a failed score out of training, or stop the run"
    )
    timeout: float = Field(60.0, gt=0, description="seconds for scoring one batch")
    tasks: list[Literal["t2i", "vqa"]] | None = Field(None, description="apply to these tasks only")
    clip: list[float] | None = Field(
        None, min_length=2, max_length=2, description="[low, high]: limits of the score in the sum"
    )
    normalise: Literal["none", "group"] = Field(
        "none", description="group: sum (score - mean) / std within the prompt's samples (GDPO)"
    )
    batch_size: int | None = Field(
        None, ge=1, description="samples per call; null: all, or what the reward says"
    )
    held_out: bool = Field(False, description="log it and never train on it, as with weight 0")
    watches: list[str] | None = Field(
        None,
        description="trained rewards to warn about if they rise while this held-out one falls; null: all",
    )
    isolate: bool = Field(False, description="run in a process of its own, killed at the time-out")
    memory_gib: float | None = Field(None, gt=0, description="limit for that process; implies isolate")
    kwargs: dict[str, Any] = Field({}, description="arguments of the reward")
    workers: int | None = Field(
        None, ge=1, description="with rl.runner=ray: processes for this reward alone; null: the common ones"
    )
    resources: RewardResources | None = Field(
        None, description="what each of these processes gets; null: as ray.reward says"
    )
    runtime_env: dict[str, Any] | None = Field(
        None, description="Ray runtime environment of these processes, such as {pip: [hpsv3]}"
    )

    def spec(self) -> RewardSpec:
        """What a suite is made of."""
        return RewardSpec(**self.model_dump(exclude={"workers", "resources", "runtime_env"}))

    @property
    def own_workers(self) -> bool:
        """Whether it runs in processes that no other reward shares."""
        return not (self.workers is self.resources is self.runtime_env is None)

    @property
    def label(self) -> str:
        return self.name or self.use.rsplit(":", 1)[-1]

    @property
    def trained(self) -> bool:
        return self.weight != 0 and not self.held_out

    @field_validator("clip")
    @classmethod
    def _ordered(cls, clip: list[float] | None) -> list[float] | None:
        if clip is not None and clip[0] >= clip[1]:
            raise ValueError(f"clip {clip} must be [low, high] with low below high")
        return clip

    @field_validator("use")
    @classmethod
    def _known(cls, use: str) -> str:
        known = available_rewards()
        if ":" not in use and use not in known:
            raise ValueError(
                f"there is no reward {use!r}; {advice(use, known)} Your own is package.module:attr or ./file.py:attr"
            )
        return use
