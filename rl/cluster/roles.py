"""Starts the actors of a run and hands them to the loop as its roles."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import ray
import torch
from ray.util.placement_group import remove_placement_group

from dina.rl.cluster.learner_group import LearnerGroup, LearnerWorker
from dina.rl.cluster.placement import make_plan, placed, reserve
from dina.rl.cluster.pool import Limits
from dina.rl.cluster.reactor import Reactor
from dina.rl.cluster.reward_pool import RewardPool, RewardWorker
from dina.rl.cluster.rollout_pool import RolloutPool, RolloutWorker
from dina.rl.cluster.session import open_session
from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import Roles

_RESERVE_SECONDS = 120.0


def open_ray_roles(config: TrainConfig, folder: Path) -> Roles:
    """Starts or joins Ray, reserves what the recipe asks for, and starts all actors at once.

    Args:
        folder: of the run, for the command that resumes it.

    Raises:
        DinaError: Ray or its resources are not to be had, or an actor cannot be set up.
    """
    settings = config.ray
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    advice = f"Go on from the last checkpoint with: dina train --resume {folder}"
    limits = Limits(settings.max_failures, settings.worker_timeout, advice)
    with ExitStack() as stack:
        cpus = make_plan(config, has_gpus=torch.cuda.is_available()).total("CPU")
        stack.callback(open_session(settings, cpus))
        plan = make_plan(config, has_gpus=ray.cluster_resources().get("GPU", 0) >= 1)
        group = reserve(plan, _RESERVE_SECONDS)
        stack.callback(remove_placement_group, group)
        reactor = Reactor()
        transport = plan.transport(config)
        rollout = RolloutPool(
            config, [placed(RolloutWorker, group, slot) for slot in plan.rollout], reactor, limits, transport
        )
        stack.callback(rollout.close)
        environments = {reward.label: reward.runtime_env for reward in config.rewards}
        starts = {
            label: [placed(RewardWorker, group, slot, environments[label]) for slot in slots]
            for label, slots in plan.own_reward.items()
        }
        shared = [placed(RewardWorker, group, slot) for slot in plan.reward]
        scorer = RewardPool(config, shared, reactor, limits, own=starts)
        stack.callback(scorer.close)
        patient = Limits(0, settings.learner_timeout, advice)
        learner = LearnerGroup(
            config, [placed(LearnerWorker, group, slot) for slot in plan.learner], reactor, patient, transport
        )
        stack.callback(learner.close)
        return Roles(rollout, scorer, learner, close=stack.pop_all().close)
