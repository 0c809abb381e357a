"""``dina rewards``: looks at rewards, tries them out, measures and serves them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dina.errors import DinaError

if TYPE_CHECKING:
    from dina.rewards.batch import RewardSample
    from dina.rewards.protocol import RewardSpec

app = typer.Typer(rich_markup_mode="rich")

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="As in a recipe: ocr, package.module:attr or ./file.py:attr")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An argument of the reward; repeat it")
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="KEY=VALUE", help="A column of the prompt; repeat it")
]
Images = Annotated[list[Path] | None, typer.Option("--image", help="A picture to score; repeat it for more")]
Texts = Annotated[list[str] | None, typer.Option(help="An answer to score instead of a picture")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds for a batch")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples per call; by default as the reward says")]
Isolate = Annotated[bool, typer.Option("--isolate", help="In a process of its own, killed at the time-out")]
Memory = Annotated[float | None, typer.Option("--memory-gib", min=0.1, help="Limit for that process")]


@app.callback(invoke_without_command=True)
def program(context: typer.Context) -> None:
    """Rewards: list and explain them, try one on a picture, measure it, serve it, begin one of your own.

    [bold]Examples[/bold]

    dina rewards list

    dina rewards score ocr --image sign.png --prompt 'a sign that says "OPEN"'
    """
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_() -> None:
    """Lists the rewards that a recipe can name: built-in ones, and those of installed packages."""
    from dina.rewards.registry import BUILTIN, available_rewards

    rows = [
        (name, f"{where}  ({'built in' if name in BUILTIN else 'plugin'})")
        for name, where in available_rewards().items()
    ]
    _print_rows("Rewards for `use:` in a recipe; your own is package.module:attr or ./file.py:attr", rows)


@app.command()
def show(name: Name) -> None:
    """Explains a reward: what it measures, the columns it needs, and its arguments."""
    from dina.rewards.batch import GIVEN
    from dina.rewards.registry import find_reward, parameters

    target = find_reward(name)
    typer.echo(f"{name}: {getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', name)}\n")
    typer.echo((inspect.getdoc(target) or "It says nothing about itself.") + "\n")
    named, open_ended = parameters(target)
    call = parameters(target.__call__)[0] if inspect.isclass(target) else named
    needs = [key for key, p in call.items() if p.default is p.empty and key != "self"]
    needs += [key for key in getattr(target, "requires", ()) if key not in needs]
    typer.echo(f"needs: {', '.join(needs) or 'nothing'}")
    settings = [
        _setting(p)
        for key, p in named.items()
        if inspect.isclass(target) or (p.default is not p.empty and key not in GIVEN)
    ]
    typer.echo(f"kwargs: {', '.join(settings) or 'none'}{', and any other' if open_ended else ''}")


@app.command()
def score(
    name: Name,
    image: Images = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Its prompt: one for all, or one each")] = None,
    text: Texts = None,
    column: Columns = None,
    settings: Settings = None,
    timeout: Timeout = 300.0,
    batch_size: BatchSize = None,
    isolate: Isolate = False,
    memory_gib: Memory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout")] = False,
) -> None:
    """Scores pictures or answers, and says why. Exits with 1 if a score failed.

    [bold]Examples[/bold]

    dina rewards score ocr --image sign.png --prompt 'a sign that says "OPEN"'

    dina rewards score objects --image a.png --prompt 'two red stars' --column 'include=[{class: star, count: 2}]'

    dina rewards score vqa --text "three" --prompt "how many?" --column answer=3
    """
    from dina.rewards.suite import RewardSuite

    spec = _spec(name, settings, timeout, batch_size, isolate, memory_gib)
    samples = _samples(image or [], text or [], prompt or [""], read_pairs(column, "--column"))
    suite = RewardSuite([spec])
    try:
        result = suite.score(samples)
    finally:
        suite.close()
    failed = {failure.sample_index: failure.reason for failure in result.failures}
    rows = [
        {
            "score": result.per_reward[spec.label][i],
            "parts": result.parts[spec.label][i] or {},
            **({"error": failed[i]} if i in failed else {}),
        }
        for i in range(len(samples))
    ]
    if as_json:
        from dina.rewards.wire import as_json as plain

        typer.echo(json.dumps(plain(rows), indent=1, ensure_ascii=False))
    else:
        sources = [*(image or []), *(text or [])]
        _print_rows(name, [(str(source), _verdict(row)) for source, row in zip(sources, rows, strict=True)])
    if failed:
        raise typer.Exit(1)


@app.command()
def bench(
    name: Name,
    image: Images = None,
    text: Texts = None,
    n: Annotated[int, typer.Option(min=1, help="Samples per batch")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Batches, after one to warm up")] = 3,
    size: Annotated[
        int, typer.Option(min=1, help="Side of the random pictures used without --image or --text")
    ] = 64,
    prompt: Annotated[str, typer.Option(help="The prompt of all")] = 'a sign that says "OPEN"',
    column: Columns = None,
    settings: Settings = None,
    timeout: Timeout = 300.0,
    batch_size: BatchSize = None,
    isolate: Isolate = False,
    memory_gib: Memory = None,
) -> None:
    """Measures how long a reward takes.

    [bold]Examples[/bold]

    dina rewards bench ocr --n 16

    dina rewards bench vqa --text three --column answer=3

    dina rewards bench ./my_reward.py:bright --n 64 --size 256 --isolate
    """
    from dina.rewards.bench import bench_reward

    spec = _spec(name, settings, timeout, batch_size, isolate, memory_gib)
    columns = read_pairs(column, "--column")
    given = _samples(image or [], text or [], [prompt], columns) if image or text else ()
    figures = bench_reward(spec, n, repeats, size, prompt, columns, given)
    _print_rows(f"{name}, {n} samples per batch", [(key, f"{value:.4g}") for key, value in figures.items()])


@app.command()
def serve(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Rewards to serve, as in a recipe")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port")] = 8900,
    settings: Settings = None,
    timeout: Timeout = 60.0,
    batch_size: BatchSize = None,
    isolate: Isolate = False,
    memory_gib: Memory = None,
    max_request_mib: Annotated[float, typer.Option(min=0.001, help="Largest request")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest picture, width times height")] = 4096 * 4096,
) -> None:
    """Serves rewards over HTTP, as JSON, to recipes that name the reward `remote`.

    The environment variable DINA_REWARD_TOKEN, if set, is the bearer token that clients must send; they read the
    same variable. --set goes to every reward that is served.

    [bold]Examples[/bold]

    dina rewards serve ocr --port 8900

    DINA_REWARD_TOKEN=... dina rewards serve ./my_reward.py:bright --host 0.0.0.0 --isolate
    """
    import os

    try:
        from dina.rewards.server import Limits, RewardServer, check_reach
        from dina.rewards.server import serve as run
    except ImportError as error:
        raise DinaError(
            f'serving needs starlette and uvicorn ({error}): pip install "dina-rl[server]"'
        ) from None
    from dina.rewards.wire import TOKEN_VARIABLE

    token = os.environ.get(TOKEN_VARIABLE) or None
    check_reach(host, token)
    specs = [_spec(name, settings, timeout, batch_size, isolate, memory_gib) for name in names]
    limits = Limits(request_bytes=int(max_request_mib * 2**20), picture_pixels=max_pixels)
    server = RewardServer(specs, token, limits)
    served = ", ".join(spec.label for spec in specs)
    typer.echo(f"serving {served} on http://{host}:{port}; Ctrl-C stops", err=True)
    try:
        run(server, host, port)
    finally:
        server.close()


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What recipes will call it, such as sharp_edges")
    ],
    folder: Annotated[Path | None, typer.Option(help="Where to write it; by default ./NAME")] = None,
) -> None:
    """Writes a small package with a working reward and its test, to be changed into yours."""
    from dina.rewards.scaffold import new_reward

    target = folder or Path(name)
    for path in new_reward(name, target):
        typer.echo(path)
    typer.echo(
        f"Test it: python -m pytest {target}\n"
        f"Use it:  `use: ./{target / f'{name}_reward.py'}:{name}` in a recipe, or pip install -e {target} "
        f"and `use: {name}`",
        err=True,
    )


def _spec(
    name: str,
    settings: list[str] | None,
    timeout: float,
    batch_size: int | None,
    isolate: bool,
    memory_gib: float | None,
) -> RewardSpec:
    from dina.rewards.protocol import RewardSpec

    return RewardSpec(
        use=name,
        timeout=timeout,
        batch_size=batch_size,
        isolate=isolate,
        memory_gib=memory_gib,
        kwargs=read_pairs(settings, "--set"),
    )


def read_pairs(texts: list[str] | None, option: str) -> dict[str, Any]:
    """``KEY=VALUE`` texts with YAML values."""
    from dina.rl.recipe.load import read_value

    pairs: dict[str, Any] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise DinaError(f"{option} {text!r} is not of the form KEY=VALUE")
        pairs[key] = read_value(value, f"{option} {text!r}")
    return pairs


def _samples(
    images: list[Path], texts: list[str], prompts: list[str], columns: dict[str, Any]
) -> list[RewardSample]:
    from dina.rewards.batch import RewardSample
    from dina.rewards.pictures import read_picture
    from dina.rollout.protocol import Prompt

    if not images and not texts:
        raise DinaError("Name what to score: --image FILE or --text ANSWER")
    total = len(images) + len(texts)
    if len(prompts) not in (1, total):
        raise DinaError(f"{len(prompts)} prompts for {total} samples; give one for all, or one each")
    each = prompts if len(prompts) == total else prompts * total
    shown = [
        RewardSample(Prompt(path.name, words, columns=columns), read_picture(path))
        for path, words in zip(images, each, strict=False)
    ]
    said = [
        RewardSample(Prompt(f"text {i}", words, task="vqa", columns=columns), text=text)
        for i, (text, words) in enumerate(zip(texts, each[len(images) :], strict=True))
    ]
    return shown + said


def _setting(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return f"{parameter.name} (required)"
    return f"{parameter.name}={parameter.default!r}"


def _verdict(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    head = "does not apply" if row["score"] is None else f"{row['score']:.4g}"
    parts = [f"{key}: {value}" for key, value in row["parts"].items() if value is not None]
    return "\n".join([head, *parts])


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)
