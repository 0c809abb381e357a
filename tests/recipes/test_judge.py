from __future__ import annotations

import re

import numpy as np
import pytest

from dina.eval.statistics import auc_interval
from dina.recipes.scenes.captions import DRAWING_TAGS
from dina.recipes.scenes.detector import ShapeDetector
from dina.recipes.scenes.judge import CHECKPOINT, QUESTIONS, cases, scores
from dina.recipes.scenes.questions import KINDS, about, about_colors_and_words
from dina.rewards.alignment.self_judge import SelfJudgeReward
from dina.rewards.geneval import score_scene

# What differs between two questions of one kind.
WORDS = (
    r"circles?|squares?|triangles?|stars?|cross(es)?|rings?|red|orange|yellow|green|blue|purple|pink|black"
)


@pytest.mark.parametrize("tag", [tag for tag in DRAWING_TAGS if tag != "text_rendering"])
def test_a_case_shows_what_is_true_and_not_what_is_altered(tag):
    detector = ShapeDetector()
    for case in cases(tag, 6, seed=3):
        seen = detector.detect(np.array(case.image))
        assert score_scene(seen, case.true.checks["include"]).strict == 1.0
        assert score_scene(seen, case.altered.checks["include"]).strict == 0.0


def test_another_word_is_asked_for():
    assert all(case.true.word != case.altered.word for case in cases("text_rendering", 20, seed=3))


def test_the_shipped_checkpoint_tells_true_colours_and_words_from_altered_ones():
    judge = SelfJudgeReward(str(CHECKPOINT), f"{QUESTIONS}:about", device="cpu")
    for tag in ("colors", "text_rendering"):
        true, altered = scores(judge, list(cases(tag, 16, seed=1)))
        assert len(true) == 16 and auc_interval(true, altered).mean > 0.9


def test_questions_are_worded_as_those_that_the_model_learnt():
    rng = np.random.default_rng(0)
    known = {_form(ask(rng).prompt) for ask in KINDS.values() for _ in range(300)}
    for tag in DRAWING_TAGS:
        for case in cases(tag, 10, seed=5):
            questions = about("", case.true.checks)
            assert questions and {_form(question) for question, _ in questions} <= known
            assert set(about_colors_and_words("", case.true.checks)) <= set(questions)


def _form(question):
    return re.sub(r"\ban?\b", "a", re.sub(rf"\b({WORDS})\b", "*", question))
