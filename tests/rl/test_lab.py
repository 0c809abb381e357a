from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from dina.errors import DinaError
from dina.eval.runs import Outcome, read_outcome
from dina.eval.stability import RESULT
from dina.rl.lab.config import StabilityRecipe
from dina.rl.lab.study import run_config, run_stability, write_report
from dina.rl.recipe.load import load_recipe
from tests.rl.ray_world import recipe, save_world
from tests.rl.test_cli import run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training recipe of four steps on the tiny checkpoint."""
    world = save_world(tmp_path_factory.mktemp("world"))
    changes: dict[str, Any] = {"run": {"max_steps": 4, "save_rollouts": 0}, "rl": {"runner": "local"}}
    config = recipe(world, world / "run", **changes)
    config.filters.mismatch_tau = None
    file = world / "base.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return file


def study(base: Path, out: Path, **changes: Any) -> StabilityRecipe:
    return StabilityRecipe.model_validate(
        {
            "output_dir": str(out),
            "recipe": str(base),
            "seeds": [0, 1],
            "settings": {"flips": ["rollout.faults.flip_rate=0.02", "rollout.faults.stale=1"]},
            "arms": {"none": [], "filter": ["filters.mismatch_tau=0.3"]},
            "explosion": {"window": 1},
            "eval": str(base.parent / "eval.jsonl"),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> StabilityRecipe:
    row = {"prompt": "a star", "grid": [2, 3], "tag": "single_object", "include": [{"class": "star"}]}
    (base.parent / "eval.jsonl").write_text(json.dumps(row))
    made = study(base, tmp_path_factory.mktemp("study") / "out")
    run_stability(made)
    return made


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_faults_reach_the_runs_and_the_filter_drops_what_they_plant(finished: StabilityRecipe) -> None:
    runs = {(run.arm, run.seed): run.folder for run in finished.runs()}
    for (arm, _), folder in runs.items():
        metrics = lines(folder)
        assert len(metrics) == 4
        assert max(line["mismatch/frac_over_0.5"] for line in metrics) > 0
        assert [line["staleness/max"] for line in metrics] == [0, 1, 1, 1]
        kept = min(line["filter/kept"] for line in metrics)
        assert kept < 1 if arm == "filter" else kept == 1
        assert not (folder / "checkpoints").exists()
    assert (
        lines(runs["none", 0])[0]["reward"] == lines(runs["filter", 0])[0]["reward"]
    )  # the same first batch
    table = (Path(finished.output_dir) / "results.csv").read_text().splitlines()
    assert len(table) == 1 + len(runs)


def test_a_study_goes_on_where_it_stopped(finished: StabilityRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    from dina.rl.lab import study

    original = study.train
    monkeypatch.setattr(study, "train", lambda config: made.append(config.run.output_dir) or original(config))
    lost = finished.runs()[1].folder
    before = lines(lost)
    (lost / RESULT).unlink()
    assert read_outcome(lost) == Outcome(4, "finished")  # which a run that is stopped half-way notes as well
    run_stability(finished)
    assert made == [str(lost)]

    assert [row["reward"] for row in lines(lost)] == [row["reward"] for row in before]
    assert [row["entropy"] for row in lines(lost)] == [row["entropy"] for row in before]


def test_a_run_that_another_process_makes_is_left_to_it(finished: StabilityRecipe) -> None:
    one, other = (run.folder for run in finished.runs()[:2])
    for folder in (one, other):
        (folder / RESULT).unlink()
    with FileLock(one.with_name(f"{one.name}.lock")):
        report = run_stability(finished)
        assert (other / RESULT).is_file() and not (one / RESULT).exists()
        assert "1 of 4 runs are not there yet" in report.read_text()
    assert "are not there yet" not in run_stability(finished).read_text()


def test_seeds_may_be_added_and_arms_not_changed(finished: StabilityRecipe, base: Path) -> None:
    more = finished.model_copy(update={"seeds": [0, 1, 2]})
    assert len(more.runs()) == 6
    control = more.model_copy(update={"settings": {"right": [], **more.settings}})
    assert [run.arm for run in control.runs() if run.setting == "right"] == ["none"] * 3
    assert "2 of 6 runs are not there yet" in write_report(more).read_text()
    arms = {"none": [], "filter": ["filters.mismatch_tau=0.5"]}
    with pytest.raises(DinaError, match=r"holds a study with another arms.filter"):
        run_stability(finished.model_copy(update={"arms": arms}))


def test_a_run_that_cannot_go_on_is_a_result(base: Path, finished: StabilityRecipe, tmp_path: Path) -> None:
    tight = study(
        base,
        tmp_path / "out",
        seeds=[0],
        overrides=["run.max_skipped_updates=2"],
        arms={"none": [], "all": ["filters.mismatch_tau=1e-12"]},
    )
    run_stability(tight)
    outcome = json.loads((tight.runs()[1].folder / RESULT).read_text())
    assert "minibatches in a row had no sequence" in outcome["stopped"] and outcome["score"] is None
    assert "1 runs could not go on" in (tmp_path / "out" / "report.html").read_text()


def test_recipes_that_mean_nothing_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs an arm `none"):
        study(base, tmp_path, arms={"filter": ["filters.mismatch_tau=0.3"]})
    with pytest.raises(ValueError, match="would lie in the folder 'a_b'"):
        study(base, tmp_path, settings={"a b": [], "a/b": []})
    wrong = study(base, tmp_path, arms={"none": [], "x": ["filters.mismatch_tu=1"]})
    with pytest.raises(DinaError, match="mismatch_tu"):
        run_stability(wrong)
    with pytest.raises(DinaError, match="rollout.faults are those of the torch engine"):
        run_config(study(base, tmp_path, overrides=["rl.runner=ray"]), wrong.runs()[0])


@pytest.mark.parametrize("name", ["scenes/stability", "scenes/stability_t2i"])
def test_shipped_studies_have_valid_runs(name: str) -> None:
    shipped = load_recipe(name, [], StabilityRecipe)
    for planned in shipped.runs():
        run_config(shipped, planned)
    assert len(shipped.seeds) >= 3


def test_the_program_lists_the_runs_of_a_study() -> None:
    code, out, _ = run("lab", "stability", "scenes/stability_t2i", "--dry-run")
    assert code == 0 and "planted actions · both filters · seed 2: runs/stability_t2i/" in out
