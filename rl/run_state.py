"""Where the loop stands, beside what the learner saves of itself: steps, prompt order, weight version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dina.rl.learner.training_state import load_training_state, save_training_state

FOLDER = "run"


def save_run_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` and this process's random states into a checkpoint."""
    (folder / FOLDER).mkdir()
    save_training_state(folder / FOLDER, state)


def load_run_state(folder: Path) -> dict[str, Any]:
    """The reverse of ``save_run_state``; restores the random states.

    Raises:
        DinaError: the files are missing or damaged.
    """
    return dict(load_training_state(folder / FOLDER))
