"""Runs the stability study: samplers that are wrong on purpose, and what is done about it, over several seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from dina.errors import DinaError
from dina.eval.benchmark import BenchmarkSettings, run_benchmark
from dina.eval.evaluate import first_of_each_category, open_torch_engine
from dina.eval.judge import RewardJudge
from dina.eval.stability import RESULT, Study, read_study
from dina.eval.stability_report import write_stability_report
from dina.rl.data import load_prompts
from dina.rl.lab.config import StabilityRecipe, StabilityRun
from dina.rl.loop import train
from dina.rl.recipe.config import TrainConfig
from dina.rl.recipe.load import dump_recipe, load_recipe


def run_stability(recipe: StabilityRecipe, console: Console | None = None) -> Path:
    """Makes every run that is not there yet, and writes ``results.csv`` and ``report.html``.

    Several processes may work on one study: each takes a run that no other is making, and reports what is there when
    none is left to take. A run that was stopped half-way is made again from its start. A run that cannot go on, because
    its filters left nothing or its numbers are no numbers any more, is a result and is noted.

    Returns:
        the report.

    Raises:
        DinaError: the training recipe is wrong, or the folder holds another study.
        KeyboardInterrupt: stopped by Ctrl-C; call it again to go on.
    """
    out = Path(recipe.output_dir)
    configs = {run: run_config(recipe, run) for run in recipe.runs()}
    _claim(out, recipe)
    for number, (run, config) in enumerate(configs.items(), start=1):
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(run.folder.with_name(f"{run.folder.name}.lock")).acquire(blocking=False)
        except Timeout:  # another process makes this run
            continue
        with held:
            if (run.folder / RESULT).is_file():
                continue
            if console is not None:
                name = f"{run.setting} · {run.arm} · seed {run.seed}"
                console.print(f"run {number} of {len(configs)}: {name}", markup=False)
            _make(recipe, run, config)
    return write_report(recipe)


def write_report(recipe: StabilityRecipe) -> Path:
    """Writes ``results.csv`` and ``report.html`` about the runs that are there, and returns the latter."""
    out = Path(recipe.output_dir)
    study = read_study(study_of(recipe))
    (out / "results.csv").write_text(study.csv(), encoding="utf-8")
    return write_stability_report(study, out / "report.html")


def study_of(recipe: StabilityRecipe) -> Study:
    """The study as the report wants it: which runs there are to be, without their numbers."""
    rule = recipe.explosion
    return Study(
        folder=Path(recipe.output_dir),
        recipe=recipe.recipe,
        overrides=recipe.overrides,
        # What is studied comes before the control that it is set against.
        settings=dict(sorted(recipe.settings.items(), key=lambda item: not item[1])),
        arms=recipe.all_arms,
        swept=[name for name in recipe.all_arms if name not in recipe.arms],
        entropy_factor=rule.entropy_factor,
        grad_norm_factor=rule.grad_norm_factor,
        window=rule.window,
        planned={(run.setting, run.arm, run.seed): run.folder for run in recipe.runs()},
    )


def run_config(recipe: StabilityRecipe, run: StabilityRun) -> TrainConfig:
    """The resolved training recipe of a run."""
    own = [f"run.seed={run.seed}", f"run.output_dir={json.dumps(str(run.folder))}", "run.save_steps=0"]
    changes = [*recipe.overrides, *recipe.settings[run.setting], *recipe.all_arms[run.arm], *own]
    return load_recipe(recipe.recipe, changes, TrainConfig)


def _make(recipe: StabilityRecipe, run: StabilityRun, config: TrainConfig) -> None:
    shutil.rmtree(run.folder, ignore_errors=True)
    stopped = ""
    try:
        train(config)
    except DinaError as error:
        if not (run.folder / "metrics.jsonl").is_file():
            raise
        stopped = str(error)
    checkpoint = run.folder / "checkpoints" / f"step_{config.run.max_steps}"
    score = None if stopped else _score(recipe, checkpoint, config)
    outcome = {"setting": run.setting, "arm": run.arm, "seed": run.seed, "stopped": stopped, "score": score}
    if not recipe.keep_checkpoints:
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    (run.folder / RESULT).write_text(json.dumps(outcome, ensure_ascii=False) + "\n", encoding="utf-8")


def _score(recipe: StabilityRecipe, checkpoint: Path, config: TrainConfig) -> float | None:
    """Mean over the categories of ``recipe.eval``, drawn by the torch engine without faults; answers are greedy."""
    if recipe.eval is None:
        return None
    data = config.data
    prompts = load_prompts(recipe.eval, renderer=data.renderer, grid=data.grid)
    engine, judge = open_torch_engine(checkpoint, config.rollout.batch_size), RewardJudge(data.detector)
    try:
        result = run_benchmark(
            engine, first_of_each_category(prompts, recipe.eval_limit), judge, BenchmarkSettings()
        )
    finally:
        engine.close()
        judge.close()
    means = [result.category(tag).mean for tag in result.tags]
    return sum(means) / len(means)


def _claim(out: Path, recipe: StabilityRecipe) -> None:
    """Makes the folder this study's. Seeds, arms, settings and sweeps may be added later."""
    file = out / "study.yaml"
    if file.exists():
        before = load_recipe(file, [], StabilityRecipe)
        decided = ("recipe", "overrides", "eval", "eval_limit")
        changed = [name for name in decided if getattr(recipe, name) != getattr(before, name)]
        for kind in ("settings", "arms"):
            known, now = getattr(before, kind), getattr(recipe, kind)
            changed += [f"{kind}.{name}" for name in known if name in now and known[name] != now[name]]
        if changed:
            raise DinaError(
                f"{out} holds a study with another {', '.join(changed)} ({file}); choose another output_dir"
            )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(dump_recipe(recipe), encoding="utf-8")
