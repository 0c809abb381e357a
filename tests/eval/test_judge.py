from __future__ import annotations

import numpy as np
import pytest

from dina.errors import DinaError
from dina.eval.benchmark import run_benchmark
from dina.eval.judge import RewardJudge, rule_of
from dina.recipes.scenes.world import render_json
from dina.rewards.detection import Detection
from dina.rewards.protocol import RewardSpec
from dina.rollout.protocol import Prompt, Request
from tests.eval.world import empty_sample

TWO_OBJECTS = {
    "size": [64, 64],
    "objects": [
        {"shape": "circle", "color": "red", "size": "large", "at": [16, 24]},
        {"shape": "square", "color": "blue", "size": "large", "at": [48, 40]},
    ],
}
WORD = {"size": [64, 64], "objects": [], "text": "CAT"}


def drawing(tag, include=None, image=None, **columns):
    columns = {"tag": tag, "include": include, **columns}
    prompt = Prompt("p", "a picture", "t2i", (8, 8), None, columns)
    return empty_sample(Request(prompt, 1), image)


def answer(said, wanted):
    sample = empty_sample(
        Request(Prompt("q", "how many?", "vqa", columns={"tag": "vqa", "answer": wanted}), 1)
    )
    sample.text = said
    return sample


@pytest.fixture(scope="module")
def judge():
    made = RewardJudge()
    yield made
    made.close()


def test_the_label_never_claims_plain_geneval(judge):
    assert judge.label == "GenEval-style (scenes detector)"
    assert RewardJudge(detector_name="coco").label == "GenEval-style (coco detector)"


def test_objects_are_strict_with_the_graded_score_beside(judge):
    picture = render_json(TWO_OBJECTS)
    both = [{"class": "circle", "color": "red"}, {"class": "square", "color": "blue"}]
    right, missing, surplus = judge.judge(
        [
            drawing("color_attr", both, picture),
            drawing("counting", [{"class": "circle", "count": 2}, {"class": "square"}], picture),
            drawing("single_object", [{"class": "circle"}], picture),
        ]
    )
    assert (right.score, right.scores["graded"], right.reason) == (1.0, 1.0, "as asked")
    assert missing.score == 0.0 and 0 < missing.scores["graded"] < 1 and "wanted 2" in missing.reason
    assert surplus.score == 0.0 and surplus.guards["excess_objects"] == 1
    assert set(right.guards) >= {"dark_share", "edge_density", "color_entropy"}


def test_text_counts_only_when_read_exactly(judge):
    picture = render_json(WORD)
    right, wrong = judge.judge(
        [
            drawing("text_rendering", text=["CAT"], image=picture),
            drawing("text_rendering", text=["CAR"], image=picture),
        ]
    )
    assert right.score == 1.0 and right.scores["similarity"] == 1.0
    assert wrong.score == 0.0 and 0.5 < wrong.scores["similarity"] < 1
    assert "CAT" in wrong.reason and "CAR" in wrong.reason


def test_answers_match_after_normalisation(judge):
    verdicts = judge.judge([answer("Three.", "3"), answer("four", "3"), answer("", "3")])
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.0]


def test_mixed_batches_keep_their_order(judge):
    picture = render_json(TWO_OBJECTS)
    samples = [answer("3", "3"), drawing("single_object", [{"class": "circle"}], picture), answer("2", "3")]
    assert [verdict.score for verdict in judge.judge(samples)] == [1.0, 0.0, 0.0]


def test_a_missing_picture_is_wrong_and_a_missing_target_is_a_failure(judge):
    unjudgeable = drawing("text_rendering", image=render_json(WORD))
    nothing, failed = judge.judge([drawing("counting", [{"class": "star"}]), unjudgeable])
    assert (nothing.score, nothing.failure) == (0.0, None)
    assert failed.score is None and "no usable `text`" in failed.failure


class Raising:
    def detect(self, image: np.ndarray) -> list[Detection]:
        if image.mean() < 50:
            raise RuntimeError("too dark to see")
        return [Detection("circle", "red", (0, 0, 9, 9))]


def test_a_detector_that_raises_fails_its_own_sample_only():
    judge = RewardJudge(Raising(), "planted")
    light, dark = np.full((16, 16, 3), 200, np.uint8), np.zeros((16, 16, 3), np.uint8)
    wanted = [{"class": "circle"}]
    verdicts = judge.judge([drawing("single_object", wanted, light), drawing("single_object", wanted, dark)])
    judge.close()
    assert verdicts[0].score == 1.0
    assert verdicts[1].score is None and "too dark to see" in verdicts[1].failure


def test_an_unknown_detector_is_an_error_for_people():
    judge = RewardJudge("no.such:Detector")
    with pytest.raises(DinaError, match=r"no\.such"):
        judge.judge([drawing("counting", [{"class": "star"}], render_json(WORD))])


@pytest.mark.parametrize(
    ("columns", "task", "rule"),
    [
        ({"tag": "counting", "include": [{"class": "a"}]}, "t2i", "objects"),
        ({"tag": "counting"}, "t2i", "objects"),
        ({"tag": "text_rendering", "include": [{"class": "a"}], "text": ["A"]}, "t2i", "ocr"),
        ({"tag": "posters", "text": ["A"]}, "t2i", "ocr"),
        ({"tag": "vqa"}, "vqa", "vqa"),
    ],
)
def test_every_prompt_has_one_rule(columns, task, rule):
    assert rule_of(Prompt("p", "", task, columns=columns)) == rule


class Artist:
    """Draws what the prompt's ``scene`` says."""

    def generate(self, requests, sampling):
        for request in requests:
            scene = request.prompt.columns.get("scene")
            sample = empty_sample(request, render_json(scene) if scene else None)
            sample.text = request.prompt.columns.get("answer")
            yield sample

    def update_weights(self, tensors, version): ...

    def close(self): ...


def test_the_whole_benchmark_on_true_pictures(judge):
    include = [{"class": "circle", "color": "red"}, {"class": "square", "position": ["right of", 0]}]
    prompts = [
        Prompt("a", "x", "t2i", (8, 8), None, {"tag": "position", "include": include, "scene": TWO_OBJECTS}),
        Prompt("b", "x", "t2i", (8, 8), None, {"tag": "text_rendering", "text": ["CAT"], "scene": WORD}),
        Prompt("c", "x?", "vqa", None, render_json(WORD), {"tag": "vqa", "answer": "yes"}),
    ]
    result = run_benchmark(Artist(), prompts, judge)
    assert [row.score for row in result.rows] == [1.0, 1.0, 1.0]
    assert result.failures == [] and result.score_names == ["graded", "similarity"]


def warm(generated_images, wanted, log_extra, **columns):
    """Share of red in the picture, where the row says ``wanted``."""
    shares = [float(np.asarray(image)[..., 0].mean()) / 255 for image in generated_images]
    log_extra("share", shares)
    log_extra("reason", [f"{share:.0%} red" for share in shares])
    if any(word == "broken" for word in wanted):
        raise RuntimeError("cannot tell")
    return shares


def test_a_reward_of_ones_own_judges_what_it_applies_to_and_the_rules_the_rest():
    spec = RewardSpec(f"{__name__}:warm", name="red", kwargs={})
    own = RewardJudge(reward=spec)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    mine, broken, question = own.judge(
        [
            drawing("mine", image=red, wanted="red"),
            drawing("mine", image=red, wanted="broken"),
            answer("3", "3"),
        ]
    )
    own.close()
    assert (mine.score, mine.scores, mine.reason) == (1.0, {"share": 1.0}, "100% red")
    assert broken.score is None and "cannot tell" in broken.failure
    assert question.score == 1.0
    assert own.label == "red"


def test_the_arguments_of_a_reward_belong_to_the_label():
    assert RewardJudge(reward=RewardSpec("ocr", kwargs={"excess_cost": 0})).label == "ocr (excess_cost=0)"


def test_a_question_is_judged_by_the_metric_of_its_row(judge):
    def asked(metric, said, wanted):
        sample = answer(said, wanted)
        sample.prompt.columns["metric"] = metric
        return sample

    samples = [
        asked("number", "it is 3.0", "3"),
        asked("choice", "(B)", "b"),
        asked("anls", "hello wurld", "hello world"),
        asked(None, "it is 3.0", "3"),
        asked("dina.recipes.scenes.facts:FactsReward", "a red star", "a red star at the top and a ring"),
    ]
    verdicts = judge.judge(samples)
    assert [v.score for v in verdicts] == pytest.approx([1.0, 1.0, 10 / 11, 0.0, 4 / 6])
    assert "wanted '3'" in verdicts[0].reason
    assert verdicts[3].failure is None
    with pytest.raises(DinaError, match="no reward 'chioce'.*did you mean 'choice'"):
        judge.judge([asked("chioce", "B", "B")])
