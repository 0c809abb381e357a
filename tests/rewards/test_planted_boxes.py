"""Boxes planted by a stub detector, with verdicts worked out by hand for every task of GenEval."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from dina.rewards.detection import Detection
from dina.rewards.geneval_benchmark import benchmark_correct
from dina.rewards.objects import ObjectsReward
from tests.rewards.test_objects import GENEVAL


class Planted:
    """Answers with the boxes it was given, and notes for which classes it was asked."""

    counting_threshold = 0.9

    def __init__(self, boxes: Sequence[Detection]) -> None:
        self.boxes = list(boxes)
        self.names: list[list[str]] = []

    def detect_many(self, images, names):
        self.names += names
        return [list(self.boxes) for _ in images]


def at(
    label: str, x: float = 0, y: float = 0, color: str | None = None, size: float = 10, score: float = 0.95
) -> Detection:
    """A square box around a centre."""
    half = size / 2
    return Detection(label, color, (x - half, y - half, x + half, y + half), score)


def cups(*scores: float) -> list[Detection]:
    return [at("cup", x=20 * i, score=score) for i, score in enumerate(scores)]


def dog_and_cup(dx: float, dy: float, size: float = 10) -> list[Detection]:
    return [at("dog", size=size), at("cup", dx, dy)]


CUP = [{"class": "cup", "count": 1}]
RED_CUP = [{"class": "cup", "count": 1, "color": "red"}]
BOTH = [{"class": "dog", "count": 1}, {"class": "cup", "count": 1}]
THREE = [{"class": "cup", "count": 3}]
FOUR_ARE_WRONG = [{"class": "cup", "count": 4}]
BOUND = [{"class": "dog", "count": 1, "color": "purple"}, {"class": "cup", "count": 1, "color": "black"}]
PURPLE_DOG = at("dog", color="purple")


def placed(relation: str) -> list[dict]:
    """A dog, and a cup that stands so to it."""
    return [BOTH[0], BOTH[1] | {"position": [relation, 0]}]


RIGHT = placed("right of")
# name, tag, include, exclude, boxes, exact verdict, GenEval's verdict
CASES = [
    ("one", "single_object", CUP, [], cups(0.95), 1, 1),
    ("unsure is enough", "single_object", CUP, [], cups(0.31), 1, 1),
    ("nothing", "single_object", CUP, [], [], 0, 0),
    ("another class", "single_object", CUP, [], [at("dog")], 0, 0),
    ("one too many", "single_object", CUP, [], cups(0.9, 0.9), 0, 1),
    ("a neighbour", "single_object", CUP, [], [*cups(0.9), at("dog")], 0, 1),
    ("both", "two_object", BOTH, [], dog_and_cup(30, 0), 1, 1),
    ("both, unsure", "two_object", BOTH, [], [at("dog", score=0.4), at("cup", score=0.4)], 1, 1),
    ("both in one place", "two_object", BOTH, [], dog_and_cup(0, 0), 1, 1),
    ("one of two", "two_object", BOTH, [], [at("dog")], 0, 0),
    ("the same twice", "two_object", BOTH, [], [at("dog"), at("dog", 30)], 0, 0),
    ("both and a third", "two_object", BOTH, [], [*dog_and_cup(30, 0), at("tv")], 0, 1),
    ("one is doubled", "two_object", BOTH, [], [*dog_and_cup(30, 0), at("cup", 60)], 0, 1),
    ("three", "counting", THREE, FOUR_ARE_WRONG, cups(0.95, 0.95, 0.95), 1, 1),
    ("two", "counting", THREE, FOUR_ARE_WRONG, cups(0.95, 0.95), 0, 0),
    ("four", "counting", THREE, FOUR_ARE_WRONG, cups(*[0.95] * 4), 0, 0),
    ("a flood", "counting", THREE, FOUR_ARE_WRONG, cups(*[0.95] * 16), 0, 0),
    ("none", "counting", THREE, FOUR_ARE_WRONG, [], 0, 0),
    ("the fourth is unsure", "counting", THREE, FOUR_ARE_WRONG, cups(0.95, 0.95, 0.95, 0.8), 1, 1),
    ("the third is unsure", "counting", THREE, FOUR_ARE_WRONG, cups(0.95, 0.95, 0.8), 0, 0),
    ("the third is at the limit", "counting", THREE, FOUR_ARE_WRONG, cups(0.95, 0.95, 0.9), 0, 0),
    ("three and a dog", "counting", THREE, FOUR_ARE_WRONG, [*cups(*[0.95] * 3), at("dog")], 0, 1),
    ("three and an unsure dog", "counting", THREE, [], [*cups(*[0.95] * 3), at("dog", score=0.5)], 1, 1),
    ("untagged two, sure", None, [{"class": "cup", "count": 2}], [], cups(0.95, 0.95), 1, 1),
    ("untagged two, one unsure", None, [{"class": "cup", "count": 2}], [], cups(0.95, 0.5), 0, 0),
    ("untagged one, unsure", None, CUP, [], cups(0.5), 1, 1),
    ("red", "colors", RED_CUP, [], [at("cup", color="red")], 1, 1),
    ("blue for red", "colors", RED_CUP, [], [at("cup", color="blue")], 0, 0),
    ("colour unread", "colors", RED_CUP, [], [at("cup")], 0, 0),
    ("missing", "colors", RED_CUP, [], [], 0, 0),
    ("only the neighbour is red", "colors", RED_CUP, [], [at("cup", color="blue"), at("dog", color="red")], 0, 0),
    (
        "the better box is red",
        "colors",
        RED_CUP,
        [],
        [at("cup", color="blue", score=0.5), at("cup", color="red", score=0.6)],
        0,
        1,
    ),
    (
        "the better box is blue",
        "colors",
        RED_CUP,
        [],
        [at("cup", color="blue", score=0.6), at("cup", color="red", score=0.5)],
        0,
        0,
    ),
    ("tie, red first", "colors", RED_CUP, [], [at("cup", color="red"), at("cup", color="blue")], 0, 1),
    ("tie, blue first", "colors", RED_CUP, [], [at("cup", color="blue"), at("cup", color="red")], 0, 0),
    ("bound", "color_attr", BOUND, [], [PURPLE_DOG, at("cup", 30, color="black")], 1, 1),
    ("swapped", "color_attr", BOUND, [], [at("dog", color="black"), at("cup", 30, color="purple")], 0, 0),
    ("leaked", "color_attr", BOUND, [], [PURPLE_DOG, at("cup", 30, color="purple")], 0, 0),
    ("one missing", "color_attr", BOUND, [], [PURPLE_DOG], 0, 0),
    ("one unread", "color_attr", BOUND, [], [PURPLE_DOG, at("cup", 30)], 0, 0),
    ("bound, a third", "color_attr", BOUND, [], [PURPLE_DOG, at("cup", 30, color="black"), at("tv")], 0, 1),
    ("right", "position", RIGHT, [], dog_and_cup(60, 0), 1, 1),
    ("left for right", "position", RIGHT, [], dog_and_cup(-60, 0), 0, 0),
    ("above for right", "position", RIGHT, [], dog_and_cup(0, -60), 0, 0),
    ("below for right", "position", RIGHT, [], dog_and_cup(0, 60), 0, 0),
    ("on the margin", "position", RIGHT, [], dog_and_cup(2, 0), 0, 0),  # 0.1 * (10 + 10)
    ("half a unit", "position", RIGHT, [], dog_and_cup(4, 0), 0, 0),  # (4 - 2) / 4 is not more than a half
    ("past the margin", "position", RIGHT, [], dog_and_cup(4.2, 0), 1, 1),
    ("diagonal", "position", RIGHT, [], dog_and_cup(60, 60), 1, 1),
    ("steep", "position", RIGHT, [], dog_and_cup(30, 60), 0, 0),  # 28 / 67
    ("just flat enough", "position", RIGHT, [], dog_and_cup(40, 60), 1, 1),  # 38 / 72
    ("in one place", "position", RIGHT, [], dog_and_cup(0, 0), 0, 0),
    ("a big dog's margin", "position", RIGHT, [], dog_and_cup(12, 0, size=100), 0, 0),  # (12 - 11) / 12
    ("beyond a big dog's margin", "position", RIGHT, [], dog_and_cup(30, 0, size=100), 1, 1),
    ("no dog", "position", RIGHT, [], [at("cup")], 0, 0),
    ("no cup", "position", RIGHT, [], [at("dog")], 0, 0),
    ("the worse dog is wrong", "position", RIGHT, [], [*dog_and_cup(60, 0), at("dog", 90, score=0.5)], 0, 1),
    ("the better dog is wrong", "position", RIGHT, [], [at("dog", 90, score=0.99), *dog_and_cup(60, 0)], 0, 0),
    ("left", "position", placed("left of"), [], dog_and_cup(-60, 0), 1, 1),
    ("above", "position", placed("above"), [], dog_and_cup(0, -60), 1, 1),
    ("below", "position", placed("below"), [], dog_and_cup(0, 60), 1, 1),
    ("below for above", "position", placed("above"), [], dog_and_cup(0, 60), 0, 0),
    ("right for left", "position", placed("left of"), [], dog_and_cup(60, 0), 0, 0),
    ("diagonal, up", "position", placed("above"), [], dog_and_cup(60, -60), 1, 1),
    (
        "refers to a later clause: GenEval cannot",
        "position",
        [{**BOTH[1], "position": ["right of", 1]}, BOTH[0]],
        [],
        dog_and_cup(60, 0),
        1,
        0,
    ),
    ("excluded and absent", "single_object", CUP, [{"class": "dog", "count": 1}], cups(0.95), 1, 1),
    ("excluded and there", "two_object", CUP, [{"class": "dog", "count": 1}], dog_and_cup(30, 0), 0, 0),
    ("fewer than excluded", "single_object", CUP, [{"class": "dog", "count": 2}], dog_and_cup(30, 0), 0, 1),
    (
        "as many as excluded",
        "single_object",
        CUP,
        [{"class": "dog", "count": 2}],
        [*dog_and_cup(30, 0), at("dog", 9)],
        0,
        0,
    ),
    ("exclude counts one if it says nothing", "single_object", CUP, [{"class": "dog"}], dog_and_cup(30, 0), 0, 0),
    ("too many of the asked", "single_object", CUP, [{"class": "cup", "count": 2}], cups(0.95, 0.95), 0, 0),
]  # fmt: skip


def test_there_are_cases_for_every_task():
    assert len(CASES) >= 60 and len({case[0] for case in CASES}) == len(CASES)
    tasks = {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
    assert tasks <= {case[1] for case in CASES}


@pytest.mark.parametrize(
    "tag, include, exclude, boxes, strict, benchmark", [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_verdicts_by_hand(tag, include, exclude, boxes, strict: int, benchmark: int):
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for mode, verdict in (("strict", strict), ("benchmark", benchmark)):
        reward = ObjectsReward(Planted(boxes), mode=mode)
        assert reward([image], [include], [exclude], [tag]) == [float(verdict)]
    [graded] = ObjectsReward(Planted(boxes))([image], [include], [exclude], [tag])
    assert 0 <= graded <= 1 and (graded == 1) == (strict == 1)


def test_a_detector_is_told_the_classes_of_each_prompt():
    detector = Planted([])
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    include, exclude = [RED_CUP, BOTH, None], [[{"class": "tv", "count": 1}], [{"class": "dog"}], None]
    assert ObjectsReward(detector)([image, image, image], include, exclude) == [0.0, 0.0, None]
    assert detector.names == [["cup", "tv"], ["dog", "cup"]]


@pytest.mark.skipif(not GENEVAL.exists(), reason="GenEval's prompts are not beside this checkout")
def test_geneval_prompts_get_geneval_verdicts_on_planted_boxes():
    offsets = {"left of": (-60, 0), "right of": (60, 0), "above": (0, -60), "below": (0, 60)}
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    lines = [json.loads(line) for line in GENEVAL.read_text().splitlines()]
    for line in lines:
        include, exclude = line["include"], line.get("exclude", [])

        def plant(turned: bool, repaint: bool, clauses: list[dict] = include) -> list[Detection]:
            boxes = []
            for clause in clauses:
                relation = clause["position"][0] if "position" in clause else None
                dx, dy = offsets[opposite[relation] if turned else relation] if relation else (0, 0)
                color = clause.get("color")
                color = ("blue" if color == "red" else "red") if repaint and color else color
                boxes += [at(clause["class"], dx, dy, color) for _ in range(clause["count"])]
            return boxes

        right = plant(turned=False, repaint=False)
        assert benchmark_correct(right, include, exclude), line
        assert not benchmark_correct(right[:-1], include, exclude), line
        crowd = [*right, *(at(clause["class"], 200) for clause in include)]
        assert benchmark_correct(crowd, include, exclude) == (line["tag"] != "counting") or not exclude, line
        coloured = any("color" in clause for clause in include)
        assert benchmark_correct(plant(False, True), include, exclude) == (not coloured), line
        assert benchmark_correct(plant(True, False), include, exclude) == (line["tag"] != "position"), line
