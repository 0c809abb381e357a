"""What ``auto`` comes to: the runner and the engine of a recipe, by what is installed and what is asked for."""

from __future__ import annotations

from importlib.util import find_spec

from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import rollout_sampling
from dina.rollout.vllm_compat import version_problem, vllm_version
from dina.rollout.vllm_engine import refusal


def settle(config: TrainConfig) -> str:
    """Replaces ``auto`` in ``rl.runner`` and ``rollout.engine``, in place.

    vLLM draws wherever it can, which is under Ray. Without it, the roles are processes of their own only if the
    recipe asks for several.

    Returns:
        what was chosen and why, in a sentence for the log.
    """
    loop, rollout = config.rl, config.rollout
    if "auto" not in (loop.runner, rollout.engine):
        return _sentence(config, "as the recipe says")
    obstacle = vllm_obstacle(config)
    processes = several_processes(config)
    if rollout.engine == "auto":
        rollout.engine = "torch" if obstacle else "vllm"
    if loop.runner == "auto":
        loop.runner = "ray" if rollout.engine == "vllm" or processes else "local"
    if rollout.engine == "vllm":
        return _sentence(config, f"vLLM {vllm_version()} is installed")
    reasons = [obstacle or "rollout.engine is torch"]
    reasons += [f"{processes} needs processes of its own"] if processes and loop.runner == "ray" else []
    return _sentence(config, "; ".join(reasons))


def vllm_obstacle(config: TrainConfig) -> str | None:
    """Why vLLM cannot, or need not, draw the samples of a recipe; ``None`` if it can."""
    if config.rl.runner == "local":
        return "rl.runner is local, and vLLM draws in processes of its own"
    if problem := missing_package():
        return problem
    if config.rollout.faults is not None:
        return "rollout.faults are those of the torch engine"
    if config.rollout.replay is not None:
        return "rollout.replay draws nothing"
    return refusal(rollout_sampling(config.rollout))


def missing_package() -> str | None:
    """Which package keeps any recipe from being drawn by vLLM here; ``None`` if all are there."""
    return "Ray is not installed" if find_spec("ray") is None else version_problem()


def several_processes(config: TrainConfig) -> str | None:
    """The first setting of a recipe that one process cannot do."""
    settings = {
        f"learner.ranks={config.learner.ranks}": config.learner.ranks > 1,
        f"rl.mode={config.rl.mode}": config.rl.mode == "async",
        f"ray.address={config.ray.address}": config.ray.address is not None,
        f"ray.rollout.workers={config.ray.rollout.workers}": config.ray.rollout.workers > 1,
        f"ray.reward.workers={config.ray.reward.workers}": config.ray.reward.workers > 1,
        "a reward's workers": any((reward.workers or 1) > 1 for reward in config.rewards),
        "a reward's runtime_env": any(reward.runtime_env is not None for reward in config.rewards),
    }
    return next((name for name, asked in settings.items() if asked), None)


def _sentence(config: TrainConfig, why: str) -> str:
    return f"rl.runner={config.rl.runner}, rollout.engine={config.rollout.engine}: {why}"
