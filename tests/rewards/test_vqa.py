from __future__ import annotations

import pytest

from dina.rewards.protocol import RewardSpec
from dina.rewards.suite import RewardSuite
from dina.rewards.vqa import normalise_answer
from tests.rewards.samples import answer, picture


@pytest.mark.parametrize(
    "raw, normal",
    [
        ("The Three.", "3"),
        (3, "3"),
        ("a red star", "red star"),
        ("Top-left!", "top left"),
        ("-5", "-5"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("1,000", "1000"),
        ("5%", "5%"),
        ("it’s", "its"),
        ("A", "a"),
        ("  ", ""),
    ],
)
def test_normal_form(raw, normal: str):
    assert normalise_answer(raw) == normal


@pytest.mark.parametrize(
    "said, wanted, score",
    [
        ("3", "3", 1.0),
        ("Three.", 3, 1.0),
        ("33", "3", 0.0),
        ("3 stars", "3", 0.0),
        ("", "3", 0.0),
        ("", "a", 0.0),
        ("the circle", ["disc", "circle"], 1.0),
        ("square", ["disc", "circle"], 0.0),
        ("a star and a ring. answer: two", "2", 1.0),
        ("Answer: one. No, wait.\n**Answer:** two", "2", 1.0),
        ("answer: two, answer: one", "2", 0.0),
        ("the answer two", "2", 0.0),
        ("two answer:", "2", 0.0),
    ],
)
def test_exact_match(said: str, wanted, score: float):
    rewards = RewardSuite([RewardSpec("vqa")])
    result = rewards.score([answer(said, answer=wanted)])
    rewards.close()
    assert result.total == [score] and result.failures == []
    assert f"said {said!r}" in result.parts["vqa"][0]["reason"]


def test_applies_to_answers_only():
    result = RewardSuite([RewardSpec("vqa")]).score(
        [answer("3"), picture(answer="3"), answer("3", answer="3")]
    )
    assert result.total == [None, None, 1.0]
