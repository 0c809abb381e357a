"""The program ``dina``. A command reads its options and calls the function that does the work.

Imports of torch and the like stay inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from dina import __version__
from dina.errors import DinaError
from dina.rl import rewards_cli
from dina.rl.lab import cli as lab_cli
from dina.rl.memory import keep_freed_memory

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dina.eval.benchmark import BenchmarkSettings
    from dina.eval.judge import RewardJudge
    from dina.rollout.protocol import Prompt

SCENES = "dina.recipes.scenes"


class _Program(TyperGroup):
    """Ends with a message instead of a traceback where the user can help it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DinaError as error:
            _say(f"Error: {error}", "red")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as stop:
            _say(str(stop) or "stopped", "yellow")
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
CheckpointArgument = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder")]
PromptFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--prompts", help="Prompt file; repeat it for more. By default the test files of the scenes world"
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed draws the same pictures")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples drawn at once")]
Temperature = Annotated[float, typer.Option(min=0, help="Of pictures; 0 takes the likeliest code")]
Guidance = Annotated[
    float, typer.Option("--guidance-scale", min=0, help="Classifier-free guidance of pictures; 1 is off")
]
PerPrompt = Annotated[int, typer.Option("--n-per-prompt", min=1, help="Pictures per prompt")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many prompts of each category")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables")]
Detector = Annotated[str, typer.Option(help="What sees objects in pictures, package.module:attr")]
OwnReward = Annotated[
    str | None,
    typer.Option(
        "--reward", metavar="NAME", help="Judge by this reward (0 to 1): a name, module:attr, ./file.py:attr"
    ),
]
Renderer = Annotated[str, typer.Option(help="What draws the `scene` of a question, package.module:attr")]


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
    _say(f"The run lies in {folder}; open {folder / 'report.html'}")


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

    _say(f"The checkpoint is {run_sft(config, resume)}")


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
    _say(f"The tokenizer is {Path(config.output_dir) / 'final'}")


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

    print_report(run(config, console=_stderr()))
    _say(f"The rows are {Path(config.output_dir) / f'prepared.{config.format}'}")


@app.command()
def generate(
    checkpoint: CheckpointArgument,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to draw, or what to ask about --image")
    ],
    grid: Annotated[
        str, typer.Option(metavar="ROWSxCOLUMNS", help="Size of the picture in visual tokens")
    ] = "8x8",
    image: Annotated[Path | None, typer.Option(help="Ask about this picture instead of drawing one")] = None,
    n: Annotated[int, typer.Option(min=1, help="Samples")] = 1,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures")] = Path("generated"),
    temperature: Temperature = 1.0,
    guidance: Guidance = 1.0,
    device: Device = "auto",
) -> None:
    """Draws pictures for a prompt, or answers a question about a picture.

    [bold]Examples[/bold]

    dina generate runs/sft/final "a red star left of a blue circle" --n 4 --grid 8x12

    dina generate runs/sft/final "how many stars are there?" --image generated/0.png
    """
    from dina.rl.generate import answer_question, draw_pictures

    options: dict[str, Any] = {"n": n, "seed": seed, "temperature": temperature, "device": device}
    if image is not None:
        for answer in answer_question(checkpoint, prompt, image, **options):
            typer.echo(answer)
        return
    for path in draw_pictures(checkpoint, prompt, _parse_grid(grid), out, guidance_scale=guidance, **options):
        typer.echo(path)


@app.command()
def evaluate(
    checkpoint: CheckpointArgument,
    prompts: PromptFiles = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, the numbers and the pictures")] = Path(
        "runs/evaluate"
    ),
    as_json: AsJson = False,
    n_per_prompt: PerPrompt = 1,
    limit: Limit = None,
    seed: Seed = 0,
    temperature: Temperature = 1.0,
    guidance: Guidance = 1.0,
    reward: OwnReward = None,
    settings: rewards_cli.Settings = None,
    detector: Detector = f"{SCENES}.detector:ShapeDetector",
    renderer: Renderer = f"{SCENES}.world:render_json",
    batch_size: BatchSize = 64,
    device: Device = "auto",
) -> None:
    """Scores a checkpoint on held-out prompts: six categories, their mean, rendered text, answers.

    [bold]Examples[/bold]

    dina evaluate runs/t2i_grpo/checkpoints/step_220

    dina evaluate CHECKPOINT --prompts mine.jsonl --n-per-prompt 4 --json

    dina evaluate CHECKPOINT --prompts mine.jsonl --reward ./my_reward.py:bright --set gain=2
    """
    from dina.eval.evaluate import evaluate_checkpoint, open_torch_engine
    from dina.eval.report import write_report
    from dina.eval.tables import print_result

    chosen = _prompts(prompts, renderer, limit)
    result = evaluate_checkpoint(
        checkpoint,
        chosen,
        _judge(detector, reward, settings),
        _settings(n_per_prompt, seed, temperature, guidance),
        out=out,
        open_engine=partial(open_torch_engine, batch_size=batch_size, device=_device(device)),
        console=_stderr(),
    )
    report = write_report(out, evaluation=result)
    if as_json:
        typer.echo(json.dumps(result.summary(), indent=1, ensure_ascii=False))
    else:
        print_result(result)
    _say(f"The report is {report}")


@app.command()
def compare(
    before: Annotated[
        Path, typer.Argument(metavar="BEFORE", help="Checkpoint folder, or an evaluation.json")
    ],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Checkpoint folder, or an evaluation.json")],
    prompts: PromptFiles = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, the numbers and the pictures")] = Path(
        "runs/compare"
    ),
    as_json: AsJson = False,
    n_per_prompt: PerPrompt = 1,
    limit: Limit = None,
    seed: Seed = 0,
    temperature: Temperature = 1.0,
    guidance: Guidance = 1.0,
    reward: OwnReward = None,
    settings: rewards_cli.Settings = None,
    detector: Detector = f"{SCENES}.detector:ShapeDetector",
    renderer: Renderer = f"{SCENES}.world:render_json",
    batch_size: BatchSize = 64,
    device: Device = "auto",
) -> None:
    """Evaluates two checkpoints on the same prompts with the same seeds, and pairs them.

    Shows what training gained and what it cost: every category with the interval of its difference, what became of
    answering questions, the variety of the pictures, and pairs of pictures to look at.

    [bold]Examples[/bold]

    dina compare runs/sft/final runs/t2i_grpo/checkpoints/step_220 --n-per-prompt 2

    dina compare runs/evaluate/evaluation.json runs/t2i_grpo/checkpoints/step_220
    """
    from dina.eval.evaluate import compare_checkpoints, open_torch_engine
    from dina.eval.report import write_report
    from dina.eval.tables import print_comparison

    for path in (before, after):
        _require_checkpoint_or_result(path)
    comparison = compare_checkpoints(
        before,
        after,
        _prompts(prompts, renderer, limit),
        _judge(detector, reward, settings),
        _settings(n_per_prompt, seed, temperature, guidance),
        out=out,
        open_engine=partial(open_torch_engine, batch_size=batch_size, device=_device(device)),
        console=_stderr(),
    )
    report = write_report(out, comparison=comparison)
    if as_json:
        typer.echo(json.dumps(comparison.to_json(), indent=1, ensure_ascii=False, default=str))
    else:
        print_comparison(comparison)
    _say(f"The report is {report}")


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

    show(runs, host, port, lambda address: _say(f"The dashboard is at {address} (Ctrl-C ends it)"))


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


def _stderr() -> Console:
    return Console(stderr=True)


def _say(text: str, style: str | None = None) -> None:
    _stderr().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _print_resolved(config: BaseModel) -> None:
    from dina.rl.recipe.load import dump_recipe

    typer.echo(dump_recipe(config), nl=False)


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


def _require_checkpoint_or_result(path: Path) -> None:
    """Refuses at once what would only be found missing after minutes of work on the other one."""
    if not (path / "config.json").is_file() and not (path.suffix == ".json" and path.is_file()):
        raise DinaError(f"{path} is not there or is no checkpoint folder: it has no config.json")


def _parse_grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)", text)
    if not match:
        raise DinaError(f"--grid {text!r} is not of the form ROWSxCOLUMNS, such as 8x12")
    return int(match[1]), int(match[2])


def _prompts(files: list[Path] | None, renderer: str, limit: int | None) -> list[Prompt]:
    from dina.eval.evaluate import first_of_each_category
    from dina.rl.data import load_prompts
    from dina.rl.recipe.load import RECIPES

    shipped = [RECIPES / "scenes" / "prompts" / name for name in ("test.jsonl", "vqa_test.jsonl")]
    return first_of_each_category(load_prompts(files or shipped, renderer=renderer), limit)


def _judge(detector: str, reward: str | None, settings: list[str] | None) -> RewardJudge:
    from dina.eval.judge import TIMEOUT, RewardJudge
    from dina.rewards.protocol import RewardSpec

    name = "scenes" if detector.startswith(f"{SCENES}.") else detector
    if reward is None and settings:
        raise DinaError(f"--set {settings[0]} is an argument of a reward; name one with --reward")
    kwargs = rewards_cli.read_pairs(settings, "--set")
    own = RewardSpec(reward, timeout=TIMEOUT, kwargs=kwargs) if reward else None
    return RewardJudge(detector, name, reward=own)


def _settings(n_per_prompt: int, seed: int, temperature: float, guidance: float) -> BenchmarkSettings:
    from dina.eval.benchmark import BenchmarkSettings
    from dina.model.sampling import SamplingParams

    pictures = SamplingParams(temperature=temperature, guidance_scale=guidance)
    return BenchmarkSettings(n_per_prompt, seed, pictures)


def _device(name: str) -> str:
    from dina.rl.environment import pick_device

    return str(pick_device(name))


if __name__ == "__main__":
    main()
