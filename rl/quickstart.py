"""``dina quickstart``: a short GRPO run from the shipped checkpoint, measured before and after."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from dina.eval.compare import Comparison
from dina.eval.evaluate import compare_checkpoints, open_torch_engine
from dina.eval.judge import RewardJudge
from dina.eval.report import EVALUATION_FOLDER, write_report
from dina.eval.tables import print_comparison
from dina.rl.data import load_prompts
from dina.rl.environment import pick_device
from dina.rl.loop import train
from dina.rl.recipe.config import TrainConfig
from dina.rl.recipe.load import RECIPES, load_recipe

RECIPE = "scenes/quickstart"
PROMPTS = RECIPES / "scenes" / "prompts"
RENDERER = "dina.recipes.scenes.world:render_json"


def quickstart(overrides: Sequence[str] = (), console: Console | None = None) -> Path:
    """Trains, compares on prompts that training never saw, prints the table and returns the report's path.

    Args:
        overrides: ``a.b=c`` changes to the recipe ``scenes/quickstart``.
    """
    console = console or Console()
    config = load_recipe(RECIPE, overrides, TrainConfig)
    config.run.output_dir = str(free_folder(Path(config.run.output_dir)))
    steps, size = config.run.max_steps, config.algorithm.sequences
    console.print(f"Training for {steps} GRPO steps of {size} pictures, from the shipped checkpoint.")
    folder = train(config)
    comparison = compare_with_start(config, folder, console)
    report = write_report(folder, run=folder, comparison=comparison)
    print_comparison(comparison, console)
    console.print(f"\nReport: {report}   (open it in a browser)")
    return report


def compare_with_start(config: TrainConfig, folder: Path, console: Console) -> Comparison:
    """The run's first and last weights on the dev prompts, kept in the run's ``evaluation`` folder."""
    prompts = load_prompts([PROMPTS / "dev_large.jsonl", PROMPTS / "vqa_dev.jsonl"], renderer=RENDERER)
    after = folder / "checkpoints" / f"step_{config.run.max_steps}"
    return compare_checkpoints(
        Path(config.model.path),
        after,
        prompts,
        RewardJudge(),
        out=folder / EVALUATION_FOLDER,
        open_engine=partial(open_torch_engine, device=str(pick_device(config.run.device))),
        console=console,
    )


def free_folder(wanted: Path) -> Path:
    """``wanted``, or with the first number that no run has yet."""
    number, folder = 2, wanted
    while folder.exists():
        folder, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return folder
