"""Which run ``--resume`` means, and what of its recipe may change."""

from __future__ import annotations

import contextlib
from pathlib import Path

import yaml
from pydantic import ValidationError

from dina.errors import DinaError
from dina.eval.compare import diff_configs
from dina.rl.recipe.config import TrainConfig

FREE = (
    "run.output_dir",
    "run.run_name",
    "run.max_steps",
    "run.save_steps",
    "run.save_total_limit",
    "run.logging_steps",
    "run.sample_steps",
    "run.save_rollouts",
    "run.report_to",
    "run.wandb_project",
    "run.threads",
    "run.device",
    "run.max_skipped_updates",
    "data.eval",
    "data.eval_steps",
    "guards",
    "rl.runner",
    "rollout.kv_cache_gib",
    "rollout.gpu_memory",
)
FREE_SECTIONS = ("ray.", "alerts")


def run_folder(resume: Path) -> Path:
    """The run that ``--resume`` names by its folder or by one of its checkpoints.

    Raises:
        DinaError: neither of the two.
    """
    for folder in (resume, *resume.resolve().parents[:2]):
        if (folder / "config.yaml").is_file():
            return folder
    raise DinaError(f"{resume} belongs to no run: neither it nor the folders above it hold a config.yaml")


def refuse_other_settings(config: TrainConfig, saved: Path) -> None:
    """A resumed run continues with identical numbers, so what decides them must be as it was.

    Raises:
        DinaError: names every key that differs and is neither in ``FREE`` nor in ``FREE_SECTIONS``.
    """
    before = yaml.safe_load(saved.read_text(encoding="utf-8"))
    with contextlib.suppress(ValidationError):
        # A run of an earlier version lacks the keys that came since; they were what their defaults are.
        before = TrainConfig.model_validate(before).model_dump(mode="json")
    differing = diff_configs(before, config.model_dump(mode="json"))
    changed = [d for d in differing if d[0] not in FREE and not d[0].startswith(FREE_SECTIONS)]
    if changed:
        listed = "; ".join(f"{key} was {old!r}, now {new!r}" for key, old, new in changed)
        raise DinaError(
            f"The recipe has changed since the run began ({listed}). Resume without these changes, or start a new "
            "run from its checkpoint (model.path)."
        )
