"""``dina doctor RUN`` on runs of a tiny model that were really trained, each sick in one way."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dina.errors import DinaError
from dina.eval.alerts import RULES
from dina.eval.diagnosis import TITLES, diagnose
from dina.eval.runs import read_outcome
from dina.rl.doctor import examine_run
from dina.rl.loop import train
from tests.rl import sick_runs
from tests.rl.ray_world import recipe, save_world


def report(run: Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=400)
    code = examine_run(run, console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


@pytest.mark.parametrize(
    ("make", "cause", "words"),
    [
        (sick_runs.explosion, "explosion", ("entropy is", "it began at", "filters.entropy_k")),
        (sick_runs.collapse, "collapse", ("entropy is", "algorithm.entropy_coef")),
        (
            sick_runs.failing_reward,
            "reward",
            ("failed on 33 % of all samples", "returned nan", "rewards.N.required"),
        ),
        (
            sick_runs.stale_weights,
            "weights",
            ("weights stay behind, a weight sync does not arrive", "p_sampler"),
        ),
        (sick_runs.no_signal, "signal", ("every sample has the same reward", "dina prepare")),
    ],
)
def test_the_cause_is_named_in_words(
    make: Callable[[Path], Path], cause: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    run = make(tmp_path)
    found = diagnose(run)
    assert [finding.cause for finding in found.findings] == [cause]
    code, text = report(run)
    assert code == 1
    assert f"1. {TITLES[found.findings[0].cause]}" in text
    for word in (*words, "try:", f"dina dashboard {run}"):
        assert word in text
    assert all(rule.name in text for rule in RULES)


def test_a_run_that_is_well_is_called_well(tmp_path: Path) -> None:
    code, text = report(sick_runs.healthy(tmp_path))
    assert code == 0
    assert "No rule fired in 8 steps." in text


def test_a_rule_can_stop_a_run(tmp_path: Path) -> None:
    save_world(tmp_path)
    config = recipe(
        tmp_path,
        tmp_path / "run",
        rl={"runner": "local"},
        rewards=[{"use": "tests.rl.rewards:silence"}],
        alerts={"no_signal": {"steps": 2, "stop": True}},
    )

    with pytest.raises(DinaError, match=r"step 2: there is nothing to learn from.*alerts.no_signal.stop"):
        train(config)
    outcome = read_outcome(tmp_path / "run")
    assert outcome is not None and (outcome.state, outcome.step) == ("failed", 2)
    code, text = report(tmp_path / "run")
    assert code == 1 and "The run failed after step 2: step 2: there is nothing to learn from" in text


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DinaError, match="no run's folder"):
        diagnose(tmp_path)
    with pytest.raises(DinaError, match="There is no run folder"):
        diagnose(tmp_path / "nothing")
