"""The program ``dina``. A command reads its options and calls the function that does the work.

Imports of torch and the like stay inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from dina import __version__
from dina.errors import DinaError
from dina.rl import checkpoint_cli, rewards_cli
from dina.rl.console import say, stderr
from dina.rl.lab import cli as lab_cli
from dina.rl.memory import keep_freed_memory

if TYPE_CHECKING:
    from pydantic import BaseModel


SCENES = "dina.recipes.scenes"


class _Program(TyperGroup):
    """Ends with a message instead of a traceback where the user can help it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DinaError as error:
            say(f"Error: {error}", "red")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as stop:
            say(str(stop) or "stopped", "yellow")
            raise typer.Exit(130) from stop


app = typer.Typer(
    cls=_Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(rewards_cli.app, name="rewards")
app.add_typer(lab_cli.app, name="lab")


def main() -> None:
    """Entry point of the program: exits with 0, 2 for an error the user can mend, 130 after Ctrl-C."""
    # Reading a checkpoint takes a moment; its progress bar would only break up the lines that matter.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    keep_freed_memory()
    app(prog_name="dina")


RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe: scenes/t2i_grpo"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values set on top of the recipe: optim.learning_rate=1e-4"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the recipe, print it resolved, and stop")]


@app.callback(invoke_without_command=True)
def program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and stop")
    ] = False,
) -> None:
    """Reinforcement learning for models that read and write text and pictures as tokens of one stream.

    Begin with [bold]dina quickstart[/bold]. Then a model of your own, in this order:

    [bold]dina tokenizer[/bold] (pictures to codes) → [bold]dina sft[/bold] (learn to draw and to answer) →
    [bold]dina train[/bold] (reinforcement learning) → [bold]dina compare[/bold] (what became better, what worse).

    Every command explains itself with [bold]--help[/bold].
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def quickstart(overrides: Overrides = None) -> None:
    """Trains the shipped small model for a few minutes and shows what became better.

    Runs real GRPO steps of the recipe scenes/quickstart, compares the first and last weights on prompts that
    training never saw, and writes a report. The run lies in runs/quickstart.

    [bold]Examples[/bold]

    dina quickstart

    dina quickstart run.max_steps=60 optim.learning_rate=1e-4
    """
    from dina.rl.quickstart import quickstart as run

    run(overrides or [])


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="As for other commands; --resume does without")
    ] = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with a run: its folder, or one of its checkpoints"),
    ] = None,
) -> None:
    """Trains a model by multi-level GRPO with the rewards of a recipe.

    [bold]Examples[/bold]

    dina train scenes/t2i_grpo

    dina train my.yaml optim.learning_rate=1e-4 filters.entropy_k=3 run.output_dir=runs/lr1e-4

    dina train my.yaml algorithm.num_generations=16 --dry-run

    dina train --resume runs/lr1e-4 run.max_steps=200
    """
    from dina.rewards.registry import check_reward
    from dina.rl.recipe.config import TrainConfig, arithmetic
    from dina.rl.recipe.load import load_recipe

    changes = list(overrides or [])
    if resume is not None and (recipe is None or "=" in recipe):
        changes = [*([recipe] if recipe else []), *changes]
        from dina.rl.resume import run_folder

        recipe = str(run_folder(resume) / "config.yaml")
    if recipe is None:
        raise DinaError("Name a recipe, such as scenes/t2i_grpo, or a run to go on with: --resume runs/NAME")
    config = load_recipe(recipe, changes, TrainConfig)
    for reward in config.rewards:
        check_reward(reward.spec())
    if dry_run:
        from dina.rl.memory_plan import memory_rows
        from dina.rl.runtime import settle

        runtime = settle(config)
        _print_resolved(config)
        _print_rows("What the numbers come to", [("runs as", runtime), *arithmetic(config)])
        _print_rows("Memory", memory_rows(config))
        return
    from dina.rl.loop import train as run

    folder = run(config, resume)
    say(f"The run lies in {folder}; open {folder / 'report.html'}")


@app.command()
def sft(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in output_dir")] = False,
) -> None:
    """Trains a model on examples: pictures with captions, questions with answers.

    [bold]Examples[/bold]

    dina sft scenes/sft

    dina sft my_sft.yaml output_dir=runs/sft batch_size=32
    """
    from dina.model.sft_config import SftRecipe
    from dina.rl.recipe.load import load_recipe

    config = load_recipe(recipe, overrides or [], SftRecipe)
    if dry_run:
        return _print_resolved(config)
    from dina.model.sft import run_sft

    say(f"The checkpoint is {run_sft(config, resume)}")


@app.command()
def tokenizer(recipe: RecipeArgument, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Trains a visual tokenizer: an encoder to discrete codes, then a decoder back to pixels.

    Run it again with the same recipe to go on with a run that was stopped.

    [bold]Examples[/bold]

    dina tokenizer scenes/tokenizer

    dina tokenizer my_tokenizer.yaml output_dir=runs/tokenizer
    """
    from dina.model.tokenizer_config import TokenizerRecipe
    from dina.rl.recipe.load import load_recipe

    config = load_recipe(recipe, overrides or [], TokenizerRecipe)
    if dry_run:
        return _print_resolved(config)
    from dina.model.tokenizer_training import run_tokenizer

    figures = run_tokenizer(config)
    _print_rows(
        "Measured on the evaluation pictures", [(name, str(value)) for name, value in figures.items()]
    )
    say(f"The tokenizer is {Path(config.output_dir) / 'final'}")


@app.command()
def prepare(recipe: RecipeArgument, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Makes data fit for training: merges it, drops copies and what teaches nothing.

    Rows are compared by picture and prompt; the base model answers each a few times, and rows that it always or never
    gets right go. Run it again with the same recipe to go on with a run that was stopped.

    [bold]Examples[/bold]

    dina prepare scenes/prepare

    dina prepare my_data.yaml num_rollouts=8 output_dir=data/prepared
    """
    from dina.rl.prepare.config import PrepareRecipe
    from dina.rl.recipe.load import load_recipe

    config = load_recipe(recipe, overrides or [], PrepareRecipe)
    if dry_run:
        return _print_resolved(config)
    from dina.rl.prepare.prepare import prepare as run
    from dina.rl.prepare.report import print_report

    print_report(run(config, console=stderr()))
    say(f"The rows are {Path(config.output_dir) / f'prepared.{config.format}'}")


for command in (checkpoint_cli.generate, checkpoint_cli.evaluate, checkpoint_cli.compare):
    app.command()(command)


@app.command()
def dashboard(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or folders that hold some")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8901,
    host: Annotated[
        str, typer.Option(help="127.0.0.1 or ::1; other machines are never let in")
    ] = "127.0.0.1",
) -> None:
    """Shows runs in the browser, while they train and afterwards: curves, samples, health, comparisons.

    The page is served to this machine alone and changes nothing.

    [bold]Examples[/bold]

    dina dashboard runs/t2i_grpo

    dina dashboard runs/seed-0 runs/seed-1 runs/no-filters
    """
    from dina.rl.dashboard import show

    show(runs, host, port, lambda address: say(f"The dashboard is at {address} (Ctrl-C ends it)"))


@app.command()
def doctor(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run's folder; without it, this machine is checked")
    ] = None,
) -> None:
    """Checks this machine: versions, devices, threads, memory, and what is missing for which feature.

    With a run's folder: says what went wrong with the run and what to try, and lists the rules by which it was judged.
    Ends with 1 if something is wrong.

    [bold]Examples[/bold]

    dina doctor

    dina doctor runs/t2i_grpo
    """
    from dina.rl.doctor import examine_run, run_doctor

    raise typer.Exit(run_doctor() if run is None else examine_run(run))


def _print_resolved(config: BaseModel) -> None:
    from dina.rl.recipe.load import dump_recipe

    typer.echo(dump_recipe(config), nl=False)


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


if __name__ == "__main__":
    main()
