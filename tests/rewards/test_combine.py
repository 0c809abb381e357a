from __future__ import annotations

import logging
import random

import pytest
import torch

from dina.errors import DinaError
from dina.policies.advantages import group_advantages
from dina.rewards.combine import Term, normalise_in_groups, prompt_weights, weighted_sum
from dina.rewards.held_out import HeldOutWatch, divergences
from dina.rewards.protocol import RewardSpec, watched_pairs
from dina.rewards.suite import RewardSuite
from tests.rewards.samples import picture

HERE = __name__


def a(a):
    return list(a)


def b(b):
    return list(b)


def fails(prompts):
    raise RuntimeError("gone")


def total(samples, *specs: RewardSpec):
    suite = RewardSuite(specs)
    try:
        return suite.score(samples)
    finally:
        suite.close()


def spec(name: str, **fields) -> RewardSpec:
    return RewardSpec(f"{HERE}:{name}", **fields)


def test_a_sum_counts_what_is_there_and_never_a_failure():
    first = Term([1.0, None, None, 2.0], [2.0] * 4, [False, False, True, False])
    second = Term([0.5, 0.5, 0.5, None], [1.0, 1.0, 1.0, 0.0], [False, False, False, True])
    assert weighted_sum([first, second]) == [2.5, 0.5, None, 4.0]
    assert weighted_sum([]) == []


def test_normalising_follows_trls_normalize_then_sum():
    """``(r - mean) / (std + 1e-4)`` per reward and group, summed, then divided by the deviation of the batch."""
    scores = torch.tensor([[0.1, 0.9, 0.4, 0.4], [0.40, 0.41, 0.45, 0.47]], dtype=torch.float64).T
    grouped = scores.reshape(1, 4, 2)
    z = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    summed = (z.reshape(4, 2) * torch.tensor([1.0, 0.5])).sum(1)
    expected = (summed - summed.mean()) / (summed.std() + 1e-4)

    samples = [picture(a=x.item(), b=y.item()) for x, y in scores]
    fields = {"normalise": "group"}
    result = total(samples, spec("a", **fields), spec("b", weight=0.5, **fields))
    ours = group_advantages(torch.tensor(result.total, dtype=torch.float64), torch.zeros(4), "batch")
    assert torch.allclose(ours.values, expected, atol=1e-6)
    assert result.per_reward["a"] == [0.1, 0.9, 0.4, 0.4]


def test_normalising_knows_groups_gaps_and_flat_groups():
    scores = [0.0, 5.0, 1.0, None, 5.0, 5.0]
    groups = [0, 1, 0, 0, 1, 2]
    found = normalise_in_groups(scores, groups, eps=0.0)
    assert found == [pytest.approx(-(0.5**0.5)), 0.0, pytest.approx(0.5**0.5), None, 0.0, 0.0]


def test_clipping_limits_the_sum_and_not_the_log():
    result = total([picture(a=-3.0), picture(a=0.5)], spec("a", clip=(0.0, 1.0)))
    assert result.total == [0.0, 0.5]
    assert result.per_reward["a"] == [-3.0, 0.5]
    assert result.metrics()["rewards/a/clipped"] == 0.5


def test_a_prompt_may_bring_its_own_weights():
    samples = [
        picture(a=1.0, b=1.0, reward_weights={"a": 5, "b": None}),
        picture(a=1.0, b=1.0, reward_weights={"a": 0}),
        picture(a=1.0, b=1.0),
    ]
    assert total(samples, spec("a"), spec("b", weight=0.5)).total == [5.5, 0.5, 1.5]
    held_out = total([picture(a=1.0, b=1.0, reward_weights={"b": 9})], spec("a"), spec("b", held_out=True))
    assert held_out.total == [1.0]


def test_a_failure_counts_where_its_weight_does():
    samples = [picture(a=1.0, reward_weights={"fails": 0}), picture(a=1.0)]
    result = total(samples, spec("a"), spec("fails"))
    assert result.total == [1.0, None] and len(result.failures) == 2
    assert total(samples, spec("a"), spec("fails", held_out=True)).total == [1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"orc": 1}, "names no reward 'orc'; did you mean 'ocr'"),
        ({"ocr": "much"}, "gives ocr the weight 'much'"),
        ({"ocr": float("nan")}, "no finite number"),
        ([1, 2], "must be a mapping"),
    ],
)
def test_weights_that_make_no_sense_are_errors(weights, words: str):
    with pytest.raises(DinaError, match=words):
        prompt_weights([{"reward_weights": weights}], "ocr", 1.0, ["ocr", "objects"])


def history(n: int, trained: float, held_out: float, noise: float = 0.02) -> list[dict[str, float]]:
    """``n`` steps in which two rewards change by so much per step."""
    draw = random.Random(0)
    return [
        {
            "rewards/a/mean": trained * i + draw.gauss(0, noise),
            "rewards/b/mean": 0.5 + held_out * i + draw.gauss(0, noise),
        }
        for i in range(n)
    ]


def test_a_trained_reward_that_rises_while_its_partner_falls_is_noticed():
    [found] = divergences(history(20, 0.01, -0.01), [("a", "b")])
    assert found.rise == pytest.approx(0.1, abs=0.03) and found.fall == pytest.approx(0.1, abs=0.03)
    assert "'a' rose by" in str(found) and "held-out 'b' fell by" in str(found)


@pytest.mark.parametrize(
    "steps",
    [history(20, 0.01, 0.01), history(20, -0.01, -0.01), history(20, 0.0, 0.0), history(19, 0.01, -0.01)],
)
def test_nothing_is_said_where_they_go_together_stand_still_or_are_new(steps):
    assert divergences(steps, [("a", "b")]) == []


def test_steps_without_a_score_are_passed_over():
    steps = history(20, 0.01, -0.01)
    steps[4:4] = [{"rewards/a/mean": float("nan")}, {"rewards/b/mean": float("inf")}, {}]
    assert divergences(steps[:20], [("a", "b")]) == []
    assert len(divergences(steps, [("a", "b")])) == 1


def test_the_watch_speaks_once_until_it_is_over():
    watch = HeldOutWatch([("a", "b")])
    steps = [*history(40, 0.01, -0.01), *history(60, 0.0, 0.0), *history(40, 0.01, -0.01)]
    assert sum(len(watch.warnings(metrics)) for metrics in steps) == 2


def test_partners_are_all_trained_rewards_or_those_named():
    specs = [
        RewardSpec("a"),
        RewardSpec("b"),
        RewardSpec("c", weight=0),
        RewardSpec("d", held_out=True, watches=["b"]),
    ]
    assert watched_pairs(specs) == [("a", "c"), ("b", "c"), ("b", "d")]


def test_the_log_of_a_run_warns(tmp_path, caplog):
    from dina.rl.metrics import MetricsLogger
    from dina.rl.recipe.config import TrainConfig

    rewards = [{"use": f"{HERE}:a"}, {"use": f"{HERE}:b", "held_out": True}]
    config = TrainConfig.model_validate(
        {"model": {"path": "c"}, "data": {"train": "p"}, "rewards": rewards, "run": {"max_steps": 30}}
    )
    with MetricsLogger(tmp_path, config) as metrics, caplog.at_level(logging.WARNING):
        for step, values in enumerate(history(30, 0.01, -0.01), 1):
            metrics.log(step, values)
    assert caplog.text.count("reward 'a' rose by") == 1
