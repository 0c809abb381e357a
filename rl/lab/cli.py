"""``dina lab``: studies of the method itself."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Studies of the method: what a sampler that is wrong does to training.",
)


@app.command()
def stability(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe")
    ] = "scenes/stability",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values set on top of the recipe")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every run's recipe, list the runs, and stop")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write the report about the runs that are there, and stop")
    ] = False,
) -> None:
    """Trains with samplers that are wrong on purpose, with and without remedies, over several seeds.

    The folder gets results.csv and report.html. Run it again to go on with a study that was stopped.

    [bold]Examples[/bold]

    dina lab stability scenes/stability

    dina lab stability scenes/stability 'seeds=[0]' --dry-run
    """
    from dina.rl.lab.config import StabilityRecipe
    from dina.rl.lab.study import run_config, run_stability, write_report
    from dina.rl.recipe.load import load_recipe

    config = load_recipe(recipe, overrides or [], StabilityRecipe)
    if dry_run:
        for run in config.runs():
            run_config(config, run)
            typer.echo(f"{run.setting} · {run.arm} · seed {run.seed}: {run.folder}")
        return
    console = Console(stderr=True)
    path = write_report(config) if report else run_stability(config, console)
    console.print(f"The report is {path}", markup=False, soft_wrap=True)
