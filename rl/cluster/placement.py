"""Which process stands where, and what it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dina.errors import DinaError
from dina.rl.recipe.cluster import RoleConfig
from dina.rl.recipe.config import TrainConfig
from dina.rollout.weight_transport import TransportName


@dataclass(frozen=True)
class Slot:
    """The place of one process: a bundle of the placement group, and its share of it."""

    bundle: int
    cpus: float
    gpus: float
    threads: int


@dataclass
class Plan:
    """Bundles of resources that must each fit on one node, and the slots in them.

    Attributes:
        threads: of a process whose section names none.
        reward, own_reward: for the rewards that share workers, and for those that have their own, by label.
    """

    bundles: list[dict[str, float]] = field(default_factory=list)
    threads: int = 1
    learner: list[Slot] = field(default_factory=list)
    rollout: list[Slot] = field(default_factory=list)
    reward: list[Slot] = field(default_factory=list)
    own_reward: dict[str, list[Slot]] = field(default_factory=dict)

    def transport(self, config: TrainConfig) -> TransportName:
        """How weights get to the rollout workers: as ``ray.weight_transfer`` says, or the fastest way there is.

        Raises:
            DinaError: the way that the recipe names is not to be had in this plan.
        """
        found, why = self._fastest_transport(config)
        wanted = config.ray.weight_transfer
        if wanted == "auto":
            return found
        if wanted in ("object_store", found):
            return wanted
        raise DinaError(f"ray.weight_transfer {wanted} is not to be had: {why}; auto is {found} here")

    def _fastest_transport(self, config: TrainConfig) -> tuple[TransportName, str]:
        homes = {slot.bundle for slot in self.learner if self.bundles[slot.bundle].get("GPU", 0) <= 1}
        gpus = [slot.gpus for slot in (*self.learner, *self.rollout)]
        if config.rollout.engine != "vllm":
            return "object_store", f"rollout.engine is {config.rollout.engine}"
        if config.rl.mode == "async":
            return "object_store", "with rl.mode=async the workers draw while the learner learns"
        if not all(gpus):
            return "object_store", "learner and rollout workers do not all have a GPU"
        if min(gpus) >= 1:
            return "nccl", "learner and rollout workers have GPUs of their own"
        if all(slot.bundle in homes for slot in self.rollout):
            return "ipc", "rollout workers share GPUs with learner ranks, which NCCL refuses"
        return "object_store", "some processes share a GPU and some do not"

    def total(self, resource: str) -> float:
        return sum(bundle.get(resource, 0.0) for bundle in self.bundles)

    def add(self, *wanted: tuple[list[Slot], RoleConfig, float]) -> None:
        """One more bundle with a slot for each of ``wanted``: where it is listed, its section, its GPUs."""
        for slots, role, gpus in wanted:
            slots.append(Slot(len(self.bundles), role.cpus, gpus, role.threads or self.threads))
        resources = {
            "CPU": sum(role.cpus for _, role, _ in wanted) or 0.01,  # Ray refuses an empty bundle
            "GPU": sum(gpus for _, _, gpus in wanted),
        }
        self.bundles.append({name: amount for name, amount in resources.items() if amount})


def make_plan(config: TrainConfig, has_gpus: bool) -> Plan:
    """The plan of a recipe. ``colocated`` puts a learner rank and a rollout worker into each bundle."""
    plan, settings = Plan(threads=config.run.threads or 1), config.ray
    learner, rollout, reward = settings.learner, settings.rollout, settings.reward
    ranks, workers = config.learner.ranks, rollout.workers
    if settings.placement == "colocated":
        pairs = [*zip_longest(range(ranks), range(workers))]
    else:
        pairs = [*((rank, None) for rank in range(ranks)), *((None, worker) for worker in range(workers))]
    for pair in pairs:
        both = None not in pair
        roles: list[tuple[list[Slot], RoleConfig]] = []
        roles += [(plan.learner, learner)] if pair[0] is not None else []
        roles += [(plan.rollout, rollout)] if pair[1] is not None else []
        plan.add(*((slots, role, _gpus(role, has_gpus, both)) for slots, role in roles))
    if not all(entry.own_workers for entry in config.rewards):
        for _ in range(reward.workers):
            plan.add((plan.reward, reward, reward.gpus or 0.0))
    for entry in config.rewards:
        if entry.own_workers:
            slots = plan.own_reward[entry.label] = []
            own = entry.resources or reward
            for _ in range(entry.workers or 1):
                plan.add((slots, own, own.gpus or 0.0))
    return plan


def _gpus(role: RoleConfig, has_gpus: bool, shared: bool) -> float:
    if role.gpus is not None:
        return role.gpus
    return (0.5 if shared else 1.0) if has_gpus else 0.0


def reserve(plan: Plan, timeout: float) -> PlacementGroup:
    """Reserves the plan's resources, and waits for them.

    Raises:
        DinaError: the cluster does not have them, or not in time.
    """
    there = ray.cluster_resources()
    for name in ("CPU", "GPU"):
        if (wanted := plan.total(name)) > there.get(name, 0.0):
            raise DinaError(
                f"The recipe's processes need {wanted:g} {name}s and the Ray cluster has {there.get(name, 0.0):g}; "
                "lower ray.*.cpus, ray.*.gpus, ray.*.workers, the rewards' resources and workers, or learner.ranks"
            )
    group = placement_group(plan.bundles, strategy="PACK")
    if not group.wait(timeout):
        remove_placement_group(group)
        raise DinaError(
            f"The Ray cluster did not have {plan.bundles} free within {timeout:g} s; other runs may hold them "
            "(ray status), or no single node has enough for one of the bundles"
        )
    return group


def placed(
    cls: type, group: PlacementGroup, slot: Slot, runtime_env: Mapping[str, Any] | None = None
) -> Callable[[], Any]:
    """What starts an actor of ``cls`` in its slot, as often as it is called."""
    given = dict(runtime_env or {})
    own = {"OMP_NUM_THREADS": str(slot.threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    variables = {**own, **given.pop("env_vars", {})}
    options: dict[str, Any] = {
        "num_cpus": slot.cpus,
        "num_gpus": slot.gpus,
        "max_restarts": 0,  # a fresh actor would have no weights; the pools start their own
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, slot.bundle),
        "runtime_env": {**given, "env_vars": variables},
    }
    remote: Any = ray.remote(cls).options(**options)
    return lambda: remote.remote()
