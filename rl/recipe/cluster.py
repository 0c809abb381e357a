"""The recipe's sections on processes: which runner, on-policy or ahead, and who gets which resources."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dina.rl.recipe.section import Section


class LoopConfig(Section):
    """The section ``rl:``."""

    runner: Literal["auto", "ray", "local"] = Field(
        "auto",
        description="ray: learner, rollout and reward workers; local: all in this process; auto: ray if vllm draws "
        "or the recipe asks for several processes",
    )
    mode: Literal["sync", "async"] = Field(
        "sync", description="sync: every batch is drawn with the newest weights; async: drawn ahead"
    )
    max_staleness: int = Field(
        1, ge=1, description="async: a batch is drawn with weights this many updates older than it could be"
    )

    @property
    def lag(self) -> int:
        """Steps that drawing may run ahead of learning."""
        return self.max_staleness if self.mode == "async" else 0

    @model_validator(mode="after")
    def _ahead_needs_workers(self) -> LoopConfig:
        if self.mode == "async" and self.runner == "local":
            raise ValueError(
                "mode async draws while the learner learns, which one process cannot do; set rl.runner=ray, or "
                "rl.mode=sync"
            )
        return self


class RoleConfig(Section):
    """What each process of one role gets."""

    cpus: float = Field(1.0, ge=0, description="CPUs that Ray reserves per process; fractions are fine")
    gpus: float | None = Field(
        None, ge=0, description="GPUs per process, such as 0.5; null: as the cluster has them"
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of each process; null: run.threads, or 1"
    )


class WorkersConfig(RoleConfig):
    workers: int = Field(1, ge=1, description="processes")


class RewardResources(RoleConfig):
    cpus: float = Field(0.5, ge=0, description="CPUs that Ray reserves per process; fractions are fine")
    gpus: float | None = Field(
        0.0, ge=0, description="GPUs per process, such as 0.1 for a reward with a model"
    )
    threads: int | None = Field(1, ge=1, description="CPU threads of each process; null: run.threads, or 1")


class RewardWorkersConfig(RewardResources, WorkersConfig):
    """Processes that the rewards without workers of their own share."""

    overlap: bool = Field(
        True,
        description="score groups while others are drawn; false: when all are there, to see what that saves",
    )


class RayConfig(Section):
    """The section ``ray:``; it matters with ``rl.runner=ray`` only."""

    address: str | None = Field(
        None,
        min_length=1,
        description="an existing cluster (auto, host:port); null starts one on this machine",
    )
    placement: Literal["colocated", "separate"] = Field(
        "colocated", description="colocated: a learner rank and a rollout worker share a GPU"
    )
    weight_transfer: Literal["auto", "object_store", "nccl", "ipc"] = Field(
        "auto",
        description="how new weights reach the rollout workers; auto: ipc on a shared GPU, nccl to other GPUs, else "
        "and with rl.mode=async Ray's object store",
    )
    learner: RoleConfig = Field(default_factory=RoleConfig, description="per learner rank")
    rollout: WorkersConfig = Field(default_factory=WorkersConfig, description="what draws samples")
    reward: RewardWorkersConfig = Field(default_factory=RewardWorkersConfig, description="what scores them")
    object_store_mb: int = Field(
        512, ge=80, description="shared memory of a cluster started here; weights and samples pass through it"
    )
    max_failures: int = Field(
        3, ge=1, description="failures of one worker in a row, without a result between, that stop the run"
    )
    worker_timeout: float = Field(
        600.0, gt=0, description="seconds without a sign of life until a worker counts as dead"
    )
    learner_timeout: float = Field(3600.0, gt=0, description="longest time of one call of the learner")
