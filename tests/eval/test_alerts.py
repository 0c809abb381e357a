from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from dina.eval.alerts import RULES, START, Alert, AlertWatch, configured, watch_for
from dina.eval.metric_table import find, row


def observe(name: str, values: Sequence[float | None], **settings) -> list[Alert]:
    watch = AlertWatch(configured(settings))
    for step, value in enumerate(values, start=1):
        watch.observe(step, {name: value})
    return watch.alerts


def test_rules_are_about_metrics_that_are_described() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.title and rule.advice and rule.condition()
        assert all(row(name) for name in rule.metrics)


def test_the_docs_list_every_rule_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text(encoding="utf-8")
    for rule in RULES:
        title = rule.title[0].lower() + rule.title[1:]
        assert f"| `{rule.name}`: {title} | {rule.condition('`')} |" in page


def test_a_value_above_its_limit_fires_after_so_many_steps_and_ends() -> None:
    values = [0.0, 0.5, 0.5, 0.1, 0.5, 0.6, 0.7, 0.5, 0.1, 0.0]
    (alert,) = observe("rewards/ocr/fail_rate", values)
    assert (alert.rule.name, alert.metric, alert.since, alert.until) == (
        "reward_failures",
        "rewards/ocr/fail_rate",
        7,
        9,
    )
    assert "is 0.7, above 0.2 in 3 steps in a row" in alert.text


def test_a_share_below_its_limit_fires() -> None:
    (alert,) = observe("filter/kept", [1.0] * 3 + [0.3] * 9)
    assert (alert.rule.name, alert.since, alert.until) == ("kept_low", 8, None)


def test_entropy_is_compared_with_the_runs_own_start() -> None:
    assert observe("entropy", [0.3] * 40) == []
    assert observe("entropy", [3.0] * 40) == []
    (alert,) = observe("text/entropy", [0.3] * START + [0.3 + 0.11 * i for i in range(12)])
    # Above max(2 x 0.3, 0.3 + 0.2) from the fourth rise on, five times in a row.
    assert (alert.rule.name, alert.since) == ("entropy_high", START + 8)
    assert "it began at 0.3" in alert.text
    # A twitch of a small entropy is no explosion, though it more than doubles.
    assert observe("level_3/entropy", [0.001] * START + [0.01] * 20) == []
    (alert,) = observe("entropy", [0.3] * START + [0.02] * 12)
    assert (alert.rule.name, alert.since) == ("entropy_low", START + 5)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_number_that_is_not_finite_fires_at_once(value: float | None) -> None:
    (alert,) = observe("grad_norm", [1.0, value, value, 1.0])
    assert (alert.rule.name, alert.since, alert.until) == ("not_finite", 2, 4)


def test_a_recipe_changes_switches_off_and_stops() -> None:
    rates = [0.1] * 5
    assert observe("rewards/ocr/fail_rate", rates) == []
    (alert,) = observe(
        "rewards/ocr/fail_rate", rates, reward_failures={"limit": 0.05, "steps": 1, "stop": True}
    )
    assert alert.since == 1 and alert.rule.stop
    assert observe("rewards/ocr/fail_rate", [1.0] * 5, reward_failures={"off": True}) == []


def test_a_trained_reward_that_rises_while_its_held_out_partner_falls() -> None:
    rewards = [{"use": "objects"}, {"use": "ocr", "weight": 0.0}]
    watch = watch_for({"rewards": rewards, "alerts": {"held_out_falls": {"steps": 20}}})
    for step in range(40):
        watch.observe(step, {"rewards/objects/mean": step / 40, "rewards/ocr/mean": 1 - step / 40})
    (alert,) = watch.alerts
    assert alert.rule.name == "held_out_falls" and "may be gaming 'objects'" in alert.text


def test_memory_does_not_grow_with_the_run() -> None:
    watch = AlertWatch()
    for step in range(2000):
        watch.observe(step, {"entropy": 1.0, "reward": 0.5, "grad_norm": None if step % 2 else 1.0})
    assert len(watch.alerts) == 200 and find("entropy")
    assert all(len(w.start) <= START for watched in watch._watched.values() for w in watched)
