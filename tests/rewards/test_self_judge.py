"""The model's own opinion: decomposition of prompts, and scores by a scorer that sees pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dina.errors import DinaError
from dina.rewards.alignment.self_judge import questions_about
from dina.rewards.protocol import RewardSpec
from dina.rewards.suite import RewardSuite
from tests.rewards.samples import answer, picture
from tests.tiny_checkpoint import save_tiny_checkpoint

RED = {"class": "star", "count": 1, "color": "red"}


class SeesRed:
    """Believes in ``yes`` and ``red`` as far as the picture is red, and in other answers by the rest."""

    def __init__(self, model, batch_size, device):
        self.calls = 0

    def log_probs(self, images, questions, answers):
        self.calls += 1
        shares = [image[..., 0].mean() / 255 for image in images]
        return [
            math.log(share if said in ("yes", "red") else 1 - share)
            for share, said in zip(shares, answers, strict=True)
        ]


def scored(samples, **kwargs):
    spec = RewardSpec("self_judge", kwargs={"model": "nowhere", "scorer": f"{__name__}:SeesRed", **kwargs})
    suite = RewardSuite([spec])
    result = suite.score(samples)
    suite.close()
    return result


def half_red():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = (255, 0, 0)
    image[4:] = (51, 0, 0)
    return image  # 0.6 red


@pytest.mark.parametrize(
    ("columns", "questions"),
    [
        ({}, [('does the picture show "a scene"?', "yes")]),
        ({"include": [{"class": "owl"}]}, [("is there an owl?", "yes")]),
        (
            {"include": [{"class": "cross", "count": 2, "color": "orange"}]},
            [("how many crosses are there?", "two"), ("is there an orange cross?", "yes")],
        ),
        (
            {"include": [RED, {"class": "ring", "position": ["left of", 0]}]},
            [
                ("is there a red star?", "yes"),
                ("is there a ring?", "yes"),
                ("is the ring left of the star?", "yes"),
            ],
        ),
        (
            {"include": [RED, {**RED, "color": "blue"}]},
            [
                ("how many stars are there?", "two"),
                ("is there a red star?", "yes"),
                ("is there a blue star?", "yes"),
            ],
        ),
        ({"text": ["CAT"]}, [("what does the text say?", "CAT")]),
    ],
)
def test_a_row_becomes_questions(columns, questions):
    assert questions_about("a scene", columns) == questions


def test_the_score_is_the_mean_over_the_questions():
    result = scored([picture(half_red(), include=[RED, {"class": "ring", "count": 2}])])
    # "a red star" yes: 0.6; "how many rings" two: 0.4
    assert result.total == [pytest.approx(0.5)]
    [parts] = result.parts["self_judge"]
    assert parts["worst"] == pytest.approx(0.4)
    assert "how many rings are there? two: 0.40" in parts["reason"]


def test_answers_and_rows_without_a_question_are_left_alone():
    samples = [picture(half_red(), include=[RED]), answer("3"), picture(half_red())]
    nothing = f"{__name__}:only_about_objects"
    assert scored(samples, questions=nothing).total == [pytest.approx(0.6), None, None]


def only_about_objects(prompt, columns):
    return questions_about(prompt, columns) if columns.get("include") else []


def test_a_checkpoint_judges_through_its_engine(tmp_path):
    spec = RewardSpec("self_judge", kwargs={"model": str(save_tiny_checkpoint(tmp_path))})
    suite = RewardSuite([spec])
    result = suite.score([picture(np.full((16, 16, 3), 200, np.uint8), include=[RED])])
    suite.close()
    [total] = result.total
    assert result.failures == [] and total is not None and 0 < total < 1


def test_a_missing_checkpoint_is_found_before_the_run():
    with pytest.raises(DinaError, match="nowhere"):
        RewardSuite([RewardSpec("self_judge", kwargs={"model": "nowhere"})])
