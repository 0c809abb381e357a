from __future__ import annotations

import asyncio
import logging
import math
import threading
import time

import numpy as np
import pytest
import torch

from dina.errors import DinaError
from dina.rewards.protocol import RewardSpec
from dina.rewards.running import IDLE_BATCHES
from dina.rewards.suite import RewardSuite
from tests.rewards.samples import GREY, answer, picture

HERE = __name__


def suite(*uses: str, **fields) -> RewardSuite:
    return RewardSuite([RewardSpec(use=f"{HERE}:{use}", **fields) for use in uses])


def score(use: str, samples, **fields):
    rewards = suite(use, **fields)
    try:
        return rewards.score(samples)
    finally:
        rewards.close()


def marks(n: int) -> list:
    return [picture(mark=i) for i in range(n)]


def gives_mark(mark, **kwargs):
    return [float(value) for value in mark]


def gives_half(prompts, **kwargs):
    return [0.5] * len(prompts)


def nothing_for_odd_marks(mark):
    return [None if value % 2 else 1.0 for value in mark]


def raises(prompts, **kwargs):
    raise RuntimeError("no such file: weights.bin")


def raises_on_mark_2(mark, **kwargs):
    if 2 in mark:
        raise KeyError("mark 2")
    return [1.0] * len(mark)


def exits(prompts, **kwargs):
    raise SystemExit(3)


def hangs(prompts, **kwargs):
    time.sleep(1.0)
    return [1.0] * len(prompts)


async def hangs_async(prompts, **kwargs):
    await asyncio.sleep(60)


def one_short(prompts, **kwargs):
    return [1.0] * (len(prompts) - 1)


def one_number(prompts, **kwargs):
    return 1.0


def strange_values(prompts, **kwargs):
    return [math.nan, math.inf, "0.5", 0.25]


def tensor_values(prompts, **kwargs):
    return torch.tensor([0.25, 0.75, 1.0, 0.0])


async def doubles_mark(mark, **kwargs):
    await asyncio.sleep(0.01)
    return [2.0 * value for value in mark]


class Counting:
    """Says how often it was called, and hangs in the calls that it is told to hang in."""

    def __init__(self, hang_in: tuple[int, ...] = (), scale: float = 1.0):
        self.calls, self.hang_in, self.scale = 0, hang_in, scale
        self.closed = False

    def __call__(self, prompts, **kwargs):
        self.calls += 1
        if self.calls in self.hang_in:
            time.sleep(1.2)
        return [self.scale * self.calls] * len(prompts)

    def close(self):
        self.closed = True


def test_total_is_the_weighted_sum_of_the_rewards_that_apply():
    rewards = RewardSuite(
        [
            RewardSpec(f"{HERE}:gives_mark", weight=2.0),
            RewardSpec(f"{HERE}:nothing_for_odd_marks", name="even", weight=0.5),
        ]
    )
    result = rewards.score(marks(4))
    assert result.total == [0.5, 2.0, 4.5, 6.0]
    assert result.per_reward == {"gives_mark": [0.0, 1.0, 2.0, 3.0], "even": [1.0, None, 1.0, None]}
    metrics = result.metrics()
    assert metrics["rewards/gives_mark/mean"] == 1.5
    assert metrics["rewards/gives_mark/std"] == pytest.approx(np.std([0, 1, 2, 3], ddof=1))
    assert metrics["rewards/even/applied"] == 0.5
    assert metrics["rewards/even/fail_rate"] == 0.0
    assert metrics["rewards/even/seconds"] >= 0.0


def test_nothing_applies_is_none_and_a_true_zero_is_zero():
    assert score("nothing_for_odd_marks", [picture(mark=1)]).total == [None]
    assert score("gives_mark", [picture(mark=0)]).total == [0.0]


def test_weight_zero_is_logged_and_never_trained_on():
    rewards = RewardSuite(
        [RewardSpec(f"{HERE}:gives_half"), RewardSpec(f"{HERE}:raises_on_mark_2", weight=0)]
    )
    result = rewards.score(marks(3))
    assert result.total == [0.5, 0.5, 0.5]
    assert len(result.failures) == 1
    assert score("gives_half", marks(2), weight=0).total == [None, None]


FAULTS = [
    ("raises", 10, "no such file: weights.bin"),
    ("exits", 10, "SystemExit: 3"),
    ("hangs", 0.2, "timed out after 0.2 s"),
    ("hangs_async", 0.2, "timed out after 0.2 s"),
    ("one_short", 10, "returned 3 scores for 4 samples"),
    ("one_number", 10, "returned float, wanted a list of 4 numbers"),
]


@pytest.mark.parametrize("use, timeout, reason", FAULTS)
def test_a_fault_fails_every_sample_and_is_never_zero(use: str, timeout: float, reason: str):
    result = score(use, marks(4), timeout=timeout)
    assert result.total == [None] * 4
    assert result.per_reward[use] == [None] * 4
    assert [failure.sample_index for failure in result.failures] == [0, 1, 2, 3]
    assert all(reason in failure.reason for failure in result.failures)
    metrics = result.metrics()
    assert metrics[f"rewards/{use}/fail_rate"] == 1.0
    assert f"rewards/{use}/mean" not in metrics


@pytest.mark.parametrize("use, timeout, reason", FAULTS)
@pytest.mark.parametrize("policy", [{"required": True}, {"on_error": "raise"}])
def test_a_fault_of_a_required_reward_stops_the_run(use: str, timeout: float, reason: str, policy: dict):
    with pytest.raises(DinaError) as error:
        score(use, marks(4), timeout=timeout, **policy)
    assert use in str(error.value)
    assert "sample 0 (prompt p0)" in str(error.value)
    assert reason in str(error.value)


def test_failed_sample_is_excluded_though_other_rewards_scored_it(caplog):
    with caplog.at_level(logging.WARNING):
        result = suite("gives_half", "raises_on_mark_2").score(marks(4))
    assert result.total == [1.5, 1.5, None, 1.5]
    assert result.per_reward["gives_half"] == [0.5] * 4
    [failure] = result.failures
    assert (failure.reward, failure.sample_index) == ("raises_on_mark_2", 2)
    assert "KeyError: 'mark 2' (test_suite.py:" in failure.reason
    assert "failed for 1 of 4 samples" in caplog.text


def test_values_that_are_no_finite_numbers_fail_alone():
    result = score("strange_values", marks(4))
    assert result.total == [None, None, None, 0.25]
    assert [failure.reason for failure in result.failures] == [
        "returned nan",
        "returned inf",
        "returned '0.5', which is not a number",
    ]


def test_tensors_and_async_rewards_are_read_like_lists():
    assert score("tensor_values", marks(4)).total == [0.25, 0.75, 1.0, 0.0]
    assert score("doubles_mark", marks(3)).total == [0.0, 2.0, 4.0]


def test_rewards_wait_for_each_other_at_the_same_time():
    start = time.monotonic()
    result = RewardSuite([RewardSpec(f"{HERE}:hangs", name=f"slow{i}", timeout=10) for i in range(4)]).score(
        marks(1)
    )
    assert result.total == [4.0]
    assert time.monotonic() - start < 3.0


def test_a_hung_reward_is_left_behind_and_set_up_anew():
    rewards = suite("Counting", timeout=0.6, kwargs={"hang_in": (2,)})
    before = threading.active_count()
    assert [rewards.score(marks(1)).total for _ in range(3)] == [[1.0], [None], [1.0]]
    rewards.close()
    deadline = time.monotonic() + 5
    while threading.active_count() >= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() < before


def test_three_time_outs_in_a_row_stop_the_run():
    rewards = suite("hangs", timeout=0.05)
    assert rewards.score(marks(2)).total == [None, None]
    assert rewards.score(marks(2)).total == [None, None]
    with pytest.raises(DinaError, match="'hangs' timed out in 3 batches in a row.*0.05 s"):
        rewards.score(marks(2))


def test_retries_of_a_raising_batch_are_bounded_in_time():
    start = time.monotonic()
    result = score("slow_and_raising", marks(20), timeout=0.3)
    assert time.monotonic() - start < 1.5
    assert len(result.failures) == 20
    assert result.total == [None] * 20
    assert "not retried" in result.failures[-1].reason


def slow_and_raising(prompts, **kwargs):
    time.sleep(0.1)
    raise RuntimeError("busy")


def only_completions(completions):
    return [float(len(completion[0]["content"])) for completion in completions]


def needs_a_column(completions, solution):
    return [float(c[0]["content"] == s) for c, s in zip(completions, solution, strict=True)]


def darkness(generated_images):
    return [1 - float(np.asarray(image).mean()) / 255 for image in generated_images]


def test_a_reward_gets_what_it_accepts_and_applies_where_its_columns_are():
    samples = [answer("3", solution="3"), answer("4", solution="3"), answer("5"), picture(solution="3")]
    result = suite("darkness").score(samples)
    assert result.per_reward["darkness"] == [None, None, None, pytest.approx(1 - 200 / 255)]
    assert score("only_completions", samples[:3]).total == [1.0, 1.0, 1.0]
    assert score("needs_a_column", samples, tasks=("vqa",)).total == [1.0, 0.0, None, None]


def test_a_reward_that_never_applies_says_which_column_it_misses(caplog):
    rewards = suite("needs_a_column")
    with caplog.at_level(logging.WARNING):
        for _ in range(IDLE_BATCHES - 1):
            result = rewards.score([answer("3")])
            assert result.total == [None] and result.failures == []
        assert not caplog.text
        rewards.score([answer("3")])
        assert "needs completions, solution" in caplog.text
        caplog.clear()
        rewards.score([answer("3")])
        assert not caplog.text


def test_a_reward_that_applied_once_may_rest(caplog):
    rewards = suite("needs_a_column")
    with caplog.at_level(logging.WARNING):
        rewards.score([answer("3", solution="3")])
        for _ in range(IDLE_BATCHES):
            rewards.score([answer("3")])
    assert not caplog.text


def looks_at_everything(**kwargs):
    SEEN.append(kwargs)
    return [0.0] * len(kwargs["prompts"])


SEEN: list[dict] = []


def test_arguments_are_trls():
    SEEN.clear()
    rewards = suite("looks_at_everything")
    rewards.score(
        [picture(prompt="a star", tag="counting", include=[1]), answer("three", answer="3")], step=7
    )
    [seen] = SEEN
    assert seen["prompts"] == ["a star", "How many?"]
    shown, said = seen["completions"]
    assert shown[0]["role"] == "assistant" and shown[0]["content"][0]["type"] == "image"
    assert np.array_equal(np.asarray(shown[0]["content"][0]["image"]), GREY)
    assert said == [{"role": "assistant", "content": "three"}]
    assert (
        np.array_equal(np.asarray(seen["generated_images"][0]), GREY) and seen["generated_images"][1] is None
    )
    assert seen["images"][0] is None and np.array_equal(np.asarray(seen["images"][1][0]), GREY)
    assert seen["completion_ids"] == [[12, 13], [12, 13]]
    assert seen["include"] == [[1], None] and seen["answer"] == [None, "3"]
    assert (
        seen["tag"] == ["counting", "vqa"] and seen["task"] == ["t2i", "vqa"] and seen["id"] == ["p0", "q0"]
    )
    assert seen["trainer_state"].global_step == 7


def scribbles(generated_images, **kwargs):
    for image in generated_images:
        image.paste((0, 0, 0), (0, 0, *image.size))
    return [0.0] * len(generated_images)


def test_no_reward_can_spoil_the_picture_of_another():
    sample = picture()
    result = suite("scribbles", "darkness").score([sample])
    assert result.per_reward["darkness"] == [pytest.approx(1 - 200 / 255)]
    assert sample.image is not None and np.array_equal(sample.image, GREY)


def logs(prompts, log_extra, log_metric):
    n = len(prompts)
    log_extra("size", [float(i) for i in range(n)])
    log_extra("reason", [None] + ["too big"] * (n - 1))
    log_extra("wrong", [1.0] * (n + 1))
    log_metric("temperature", 0.5)
    return [1.0] * n


def test_logged_columns_become_parts_and_logged_scalars_metrics():
    result = score("logs", marks(3))
    assert result.parts["logs"] == [
        {"size": 0.0, "reason": None},
        {"size": 1.0, "reason": "too big"},
        {"size": 2.0, "reason": "too big"},
    ]
    metrics = result.metrics()
    assert metrics["rewards/logs/size"] == 1.0
    assert metrics["rewards/logs/temperature"] == 0.5
    assert "rewards/logs/reason" not in metrics and "rewards/logs/wrong" not in metrics


def test_close_reaches_the_reward():
    rewards = suite("Counting")
    inner = rewards.rewards[0]._reward
    rewards.close()
    assert isinstance(inner, Counting) and inner.closed


def test_trl_builtin_works_unchanged():
    rewards = RewardSuite([RewardSpec("trl.rewards:think_format_reward")])
    samples = [answer("<think>\nfive\n</think>\n5"), answer("5")]
    assert rewards.score(samples).total == [1.0, 0.0]
    rewards.close()


def test_empty_batch():
    result = score("gives_mark", [])
    assert result.total == [] and result.metrics()["rewards/gives_mark/applied"] == 0.0
