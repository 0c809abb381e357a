from __future__ import annotations

import pytest

from dina.errors import DinaError
from dina.rewards.batch import RewardSample
from dina.rewards.protocol import RewardSpec
from dina.rewards.registry import build_reward
from dina.rewards.suite import RewardSuite
from dina.rewards.understanding import (
    ANLSReward,
    ChoiceReward,
    FormatReward,
    NumberReward,
    RelaxedAccuracyReward,
    chosen,
    last_number,
)
from dina.rewards.vqa import ExactMatchReward
from dina.rollout.protocol import Prompt
from tests.rewards.samples import answer, picture

SHAPES = ["red star", "blue star", "circle"]


@pytest.mark.parametrize(
    "said, letter",
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. a blue star", "B"),
        ("(C) it is round", "C"),
        ("I think A or B, so the answer is (B).", "B"),
        ("Answer: C", "C"),
        ("The answer is A. No, the answer is B", "B"),
        ("a blue star", "B"),
        ("It shows the circle.", "C"),
        ("a red star and a circle", None),
        ("A star", None),
        ("stars", None),
        ("", None),
        ("A large answer I cannot give", None),
    ],
)
def test_the_choice_that_is_taken(said: str, letter: str | None):
    assert chosen(said, SHAPES) == letter


@pytest.mark.parametrize("right", ["B", "(b)", 1, "the blue star"])
def test_right_choice_as_letter_index_or_text(right):
    reward = ChoiceReward()
    completions = [[{"role": "assistant", "content": text}] for text in ("B", "A", "blue star")]
    assert reward(completions, [right] * 3, choices=[SHAPES] * 3) == [1.0, 0.0, 1.0]


def test_a_right_choice_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="'square' is no letter"):
        ChoiceReward()([[{"role": "assistant", "content": "A"}]], ["square"], choices=[SHAPES])


@pytest.mark.parametrize(
    "text, number",
    [
        ("3", 3),
        ("There are three.", 3),
        ("3 + 4 = 7.", 7),
        ("1,234.5 km", 1234.5),
        ("−2.5", -2.5),
        ("5-3", 3),
        ("1e-3", 0.001),
        ("about .5", 0.5),
        ("50%", 50),
        ("A4 paper", None),
        ("none", None),
    ],
)
def test_last_number(text: str, number: float | None):
    assert last_number(text) == (None if number is None else pytest.approx(number))


@pytest.mark.parametrize(
    "reward, said, wanted, score",
    [
        (NumberReward(), "It is 3", 3, 1.0),
        (NumberReward(), "1 2 3 4 5", 3, 0.0),  # listing all numbers gains nothing
        (NumberReward(tolerance=0.5), "3.4", "3", 1.0),
        (NumberReward(tolerance=0.5), "3.6", "3", 0.0),
        (NumberReward(relative=0.1), "109", 100, 1.0),
        (NumberReward(relative=0.1), "111", [100, 105], 1.0),
        (NumberReward(), "many", 3, 0.0),
        (ANLSReward(), "hello", "hello", 1.0),
        (ANLSReward(), "Hello  World", "hello world", 1.0),
        (ANLSReward(), "hallo", "hello", 4 / 5),
        (ANLSReward(), "hexyz", "hello", 0.0),  # 3 of 5 wrong
        (ANLSReward(), "ab", "cb", 0.0),  # exactly half is too far
        (ANLSReward(), "hallo", ["xyz", "hello", "hallow"], 5 / 6),
        (ANLSReward(), "", "hello", 0.0),
        (RelaxedAccuracyReward(), "105", "100", 1.0),
        (RelaxedAccuracyReward(), "105.1", "100", 0.0),
        (RelaxedAccuracyReward(), "12%", "0.12", 1.0),
        (RelaxedAccuracyReward(), "0", "0", 1.0),
        (RelaxedAccuracyReward(), "0.0", "0", 0.0),
        (RelaxedAccuracyReward(), "France", "france", 1.0),
        (RelaxedAccuracyReward(), "Spain", "france", 0.0),
        (RelaxedAccuracyReward(), "-105", "100", 0.0),
        (ExactMatchReward(tag="answer"), "<think>4?</think><answer>3</answer>", "3", 1.0),
        (ExactMatchReward(tag="answer"), "3", "3", 0.0),
        (NumberReward(tag="answer"), "<answer>4</answer> <answer>3</answer>", "3", 1.0),
    ],
)  # fmt: skip
def test_answers_by_hand(reward, said: str, wanted, score: float):
    assert reward([[{"role": "assistant", "content": said}]], [wanted]) == [pytest.approx(score)]


@pytest.mark.parametrize(
    "said, score",
    [
        ("<think>so</think><answer>3</answer>", 1.0),
        (" <think>\nso\n</think>\n<answer>3</answer>\n", 1.0),
        ("<answer>3</answer>", 0.0),
        ("<answer>3</answer><think>so</think>", 0.0),
        ("<think></think><answer>3</answer>", 0.0),
        ("<think>a</think><think>b</think><answer>3</answer>", 0.0),
        ("<think>a <answer>1</answer></think><answer>3</answer>", 0.0),
        ("<think>so</think><answer>3</answer> and more", 0.0),
        ("3", 0.0),
    ],
)
def test_form(said: str, score: float):
    assert FormatReward()([[{"role": "assistant", "content": said}]]) == [score]


def test_form_by_pattern_and_wrong_options():
    reward = FormatReward(pattern=r"\d+ stars?")
    said = [[{"role": "assistant", "content": text}] for text in ("3 stars", "three stars")]
    assert reward(said) == [1.0, 0.0]
    with pytest.raises(ValueError, match="tags is empty"):
        FormatReward(tags=())
    with pytest.raises(DinaError, match="no argument 'tolerence'; did you mean 'tolerance'"):
        build_reward(RewardSpec("number", kwargs={"tolerence": 1}))


def test_in_a_suite_they_apply_to_answers_alone():
    names = ["choice", "number", "anls", "relaxed_accuracy", "format"]
    suite = RewardSuite([RewardSpec(name) for name in names])
    samples = [answer("B", answer="B", choices=["1", "2"]), picture(answer="3"), answer("3", answer="3")]
    result = suite.score(samples)
    suite.close()
    assert result.per_reward["anls"] == [1.0, None, 1.0]
    assert result.per_reward["format"] == [0.0, None, 0.0]
    # A letter is no number and a number is no letter: wrong data is a failure with a reason, not a zero.
    assert {(f.reward, f.sample_index) for f in result.failures} == {("number", 0), ("choice", 2)}
    assert "'B' is no number" in next(f.reason for f in result.failures if f.reward == "number")


def test_rewards_share_a_data_set_by_the_metric_that_each_row_names() -> None:
    specs = [RewardSpec("vqa"), RewardSpec("number"), RewardSpec("choice")]
    rows = [("vqa", "three", "3"), ("number", "about 3", "3"), ("choice", "B", "B"), (None, "3", "3")]
    samples = [
        RewardSample(
            Prompt(str(i), "?", "vqa", columns={"answer": answer, **({"metric": metric} if metric else {})}),
            text=said,
        )
        for i, (metric, said, answer) in enumerate(rows)
    ]
    suite = RewardSuite(specs[:2])
    scored = suite.score(samples[:2])
    suite.close()
    assert scored.per_reward == {"vqa": [1.0, None], "number": [None, 1.0]}
    suite = RewardSuite(specs[::2])
    scored = suite.score([samples[0], samples[2]])
    suite.close()
    assert scored.per_reward == {"vqa": [1.0, None], "choice": [None, 1.0]}
