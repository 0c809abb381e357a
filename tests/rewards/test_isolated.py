"""Rewards in processes of their own, which fail in every way that a process can."""

from __future__ import annotations

import os
import time

import pytest

from dina.errors import DinaError
from dina.rewards.isolated import IsolatedReward
from dina.rewards.protocol import RewardSpec
from dina.rewards.suite import RewardSuite
from tests.rewards.samples import picture

FAULTS = "tests.rewards.faults"
LONG = 250.0  # a busy machine takes its time to start a process

pytestmark = pytest.mark.timeout(900)


def score(use: str, n: int = 2, **fields):
    suite = RewardSuite([RewardSpec(f"{FAULTS}:{use}", **{"timeout": LONG, "isolate": True, **fields})])
    try:
        return suite.score([picture(mark=i) for i in range(n)])
    finally:
        suite.close()


def test_it_scores_in_another_process_and_what_it_logs_comes_back():
    result = score("tells_process")
    assert result.total == [0.25, 0.25] and result.failures == []
    [parts, _] = result.parts["tells_process"]
    assert parts is not None and parts["half"] == 0.5 and parts["pid"] != os.getpid()
    assert result.metrics()["rewards/tells_process/threads"] == 3.0


def test_pictures_and_async_rewards_pass_the_border():
    assert score("reads_pictures").total == [pytest.approx(200 / 255)] * 2


def test_each_fault_fails_its_samples_with_a_reason_and_is_never_zero():
    # One suite of many rewards: they start at the same time.
    faults = {
        "raises": "RuntimeError: no such file: weights.bin (faults.py:",
        "one_short": "returned 0 scores for 1 samples",
        "one_number": "returned float, wanted a list of 1 numbers",
        "not_a_number": "returned nan",
        "exits": "SystemExit: 3",
    }
    specs = [RewardSpec(f"{FAULTS}:{use}", timeout=LONG, isolate=True) for use in faults]
    suite = RewardSuite(specs)
    result = suite.score([picture(mark=0)])
    suite.close()
    assert result.total == [None]
    reasons = {failure.reward: failure.reason for failure in result.failures}
    assert reasons.keys() == faults.keys()
    for use, words in faults.items():
        assert words in reasons[use]


def test_memory_has_a_limit_and_the_process_outlives_it():
    result = score("allocates", n=1, memory_gib=0.75)
    assert result.total == [None]
    [failure] = result.failures
    assert "MemoryError" in failure.reason or "killed" in failure.reason


def test_a_killed_process_costs_the_sample_that_killed_it():
    result = score("killed_on_mark_1", n=3)
    assert result.total == [1.0, None, 1.0]
    [failure] = result.failures
    assert failure.sample_index == 1 and "was killed by SIGKILL" in failure.reason


def test_a_hung_process_is_ended_at_the_time_out_and_replaced():
    suite = RewardSuite([RewardSpec(f"{FAULTS}:hangs_on_mark_1", isolate=True, timeout=2.0)])
    [running] = suite.rewards
    inner = running._reward
    assert isinstance(inner, IsolatedReward)
    result = suite.score([picture(mark=1)])
    assert result.failures[0].reason == "timed out after 2 s"
    assert inner._process.poll() is not None
    running.spec = RewardSpec(f"{FAULTS}:hangs_on_mark_1", isolate=True, timeout=LONG)
    assert suite.score([picture(mark=0)]).total == [1.0]
    suite.close()


@pytest.mark.parametrize(
    ("use", "words"),
    [("BadSetup", "FileNotFoundError: w.bin"), ("DiesInSetup", "was killed by SIGKILL, perhaps")],
)
def test_a_set_up_that_fails_is_an_error_at_once(use: str, words: str):
    with pytest.raises(DinaError, match=words):
        IsolatedReward(RewardSpec(f"{FAULTS}:{use}", isolate=True))


def test_close_ends_the_process():
    reward = IsolatedReward(RewardSpec(f"{FAULTS}:fine", isolate=True))
    reward.close()
    deadline = time.monotonic() + 60
    while reward._process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert reward._process.poll() is not None
