"""The commands of ``dina`` that ask a checkpoint for samples: ``generate``, ``evaluate`` and ``compare``."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dina.errors import DinaError
from dina.rl import rewards_cli
from dina.rl.console import say, stderr

if TYPE_CHECKING:
    from dina.eval.benchmark import BenchmarkSettings
    from dina.eval.judge import RewardJudge
    from dina.rollout.protocol import Prompt

SCENES = "dina.recipes.scenes"

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
AnswerTemperature = Annotated[
    float, typer.Option(min=0, help="Of answers; 0 takes the likeliest words, once per question")
]
Guidance = Annotated[
    float, typer.Option("--guidance-scale", min=0, help="Classifier-free guidance of pictures; 1 is off")
]
PerPrompt = Annotated[
    int, typer.Option("--n-per-prompt", min=1, help="Pictures, or sampled answers, per prompt")
]
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
    answer_temperature: AnswerTemperature = 0.0,
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

    dina evaluate runs/t2i_grpo/checkpoints/step_180

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
        _settings(n_per_prompt, seed, temperature, answer_temperature, guidance),
        out=out,
        open_engine=partial(open_torch_engine, batch_size=batch_size, device=_device(device)),
        console=stderr(),
    )
    report = write_report(out, evaluation=result)
    if as_json:
        typer.echo(json.dumps(result.summary(), indent=1, ensure_ascii=False))
    else:
        print_result(result)
    say(f"The report is {report}")


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
    answer_temperature: AnswerTemperature = 0.0,
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

    dina compare runs/sft/final runs/t2i_grpo/checkpoints/step_180 --n-per-prompt 2

    dina compare runs/evaluate/evaluation.json runs/t2i_grpo/checkpoints/step_180
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
        _settings(n_per_prompt, seed, temperature, answer_temperature, guidance),
        out=out,
        open_engine=partial(open_torch_engine, batch_size=batch_size, device=_device(device)),
        console=stderr(),
    )
    report = write_report(out, comparison=comparison)
    if as_json:
        typer.echo(json.dumps(comparison.to_json(), indent=1, ensure_ascii=False, default=str))
    else:
        print_comparison(comparison)
    say(f"The report is {report}")


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


def _settings(
    n_per_prompt: int, seed: int, temperature: float, answer_temperature: float, guidance: float
) -> BenchmarkSettings:
    from dina.eval.benchmark import BenchmarkSettings
    from dina.model.sampling import SamplingParams

    pictures = SamplingParams(temperature=temperature, guidance_scale=guidance)
    return BenchmarkSettings(n_per_prompt, seed, pictures, SamplingParams(temperature=answer_temperature))


def _device(name: str) -> str:
    from dina.rl.environment import pick_device

    return str(pick_device(name))
