"""What every part of the benchmark is told, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dina.rl.recipe.config import TrainConfig
from dina.rl.recipe.load import RECIPES, load_recipe
from dina.rl.runtime import settle

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How much is measured, and where.

    Attributes:
        scratch: an empty folder.
        quick: seconds instead of minutes: shows that everything runs, and says little about speed.
        threads: CPU threads of torch in every process.
        overrides: ``a.b=c`` changes to every recipe that is run.
        checkpoint: the small model; the larger ones are made from it.
    """

    scratch: Path
    quick: bool = False
    threads: int = 1
    overrides: Sequence[str] = ()
    checkpoint: Path = RECIPES / "scenes" / "checkpoint"

    def repeats(self, full: int) -> int:
        return 2 if self.quick else full

    def recipe(self, name: str, *changes: str) -> TrainConfig:
        """The quickstart's recipe with an empty folder ``name`` to run in, settled for this machine."""
        changes = (
            f"run.output_dir={self.scratch / name}",
            f"run.threads={self.threads}",
            f"model.path={self.checkpoint}",
            "run.save_steps=0",
            "optim.warmup_steps=0",
            *changes,
            *self.overrides,
        )
        config = load_recipe("scenes/quickstart", changes, TrainConfig)
        settle(config)
        return config
