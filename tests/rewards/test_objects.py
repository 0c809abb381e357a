from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dina.rewards.detection import Detection
from dina.rewards.geneval import relations, score_scene
from dina.rewards.objects import ObjectsReward

GENEVAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "geneval" / "evaluation_metadata.jsonl"


def thing(
    label: str, color: str | None = "red", x: float = 0, y: float = 0, size: float = 10, score: float = 1
):
    return Detection(label, color, (x, y, x + size, y + size), score)


def row(n: int, label: str = "star", color: str | None = "red") -> list[Detection]:
    return [thing(label, color, x=20 * i) for i in range(n)]


STAR = {"class": "star", "count": 1}
DOG = {"class": "dog", "count": 1}
THREE = {"class": "star", "count": 3}
RED_STAR = {**STAR, "color": "red"}
DOG_LEFT = [STAR, {**DOG, "position": ["left of", 0]}]

CASES = [
    # single_object
    ("one", row(1), [STAR], [], 1, 1.0),
    ("empty", [], [STAR], [], 0, 0.0),
    ("other class", [thing("dog")], [STAR], [], 0, 0.0),
    ("one too many", row(2), [STAR], [], 0, 0.0),
    ("spurious neighbour", [thing("star"), thing("dog")], [STAR], [], 0, 1 / 2),
    ("unknown blobs", [thing("star"), thing("unknown"), thing("unknown")], [STAR], [], 0, 1 / 3),
    ("count left out means one", row(1), [{"class": "star"}], [], 1, 1.0),
    # two_object
    ("both", [thing("star"), thing("dog", x=30)], [STAR, DOG], [], 1, 1.0),
    ("one of two", [thing("star")], [STAR, DOG], [], 0, 1 / 2),
    ("both and a third", [thing("star"), thing("dog"), thing("cat")], [STAR, DOG], [], 0, 2 / 3),
    # counting
    ("three", row(3), [THREE], [{"class": "star", "count": 4}], 1, 1.0),
    ("two of three", row(2), [THREE], [{"class": "star", "count": 4}], 0, 2 / 3),
    ("four for three", row(4), [THREE], [{"class": "star", "count": 4}], 0, 2 / 3 * 3 / 4),
    ("flooded", row(30), [THREE], [{"class": "star", "count": 4}], 0, 0.0),
    ("excluded class", [*row(1), thing("dog")], [STAR], [{"class": "dog", "count": 1}], 0, 1 / 2),
    ("excluded, absent", row(1), [STAR], [{"class": "dog", "count": 1}], 1, 1.0),
    # colors
    ("right colour", row(1), [RED_STAR], [], 1, 1.0),
    ("wrong colour", row(1, color="blue"), [RED_STAR], [], 0, 1 / 2),
    ("colour not asked", row(1, color="blue"), [STAR], [], 1, 1.0),
    ("null is not asked", row(1, color="blue"), [{**STAR, "color": None, "position": None}], [], 1, 1.0),
    ("detector reads no colour", row(1, color=None), [RED_STAR], [], 0, 1 / 2),
    (
        "two of three red",
        [*row(2), thing("star", "blue")],
        [{**THREE, "color": "red"}],
        [],
        0,
        (1 + 2 / 3) / 2,
    ),
    # color_attr
    (
        "attributes bound",
        [thing("star", "red"), thing("dog", "blue")],
        [RED_STAR, {**DOG, "color": "blue"}],
        [],
        1,
        1.0,
    ),
    (
        "attributes swapped",
        [thing("star", "blue"), thing("dog", "red")],
        [RED_STAR, {**DOG, "color": "blue"}],
        [],
        0,
        1 / 2,
    ),
    (
        "one class in two colours",
        [thing("star", "blue", score=0.9), thing("star", "red", score=0.8)],
        [RED_STAR, {**STAR, "color": "blue"}],
        [],
        1,
        1.0,
    ),
    (
        "one class in two colours, one is wrong",
        [thing("star", "blue"), thing("star", "green")],
        [RED_STAR, {**STAR, "color": "blue"}],
        [],
        0,
        3 / 4,
    ),
    (
        "one class in two colours, a surplus of one colour",
        [thing("star", "blue"), thing("star", "red"), thing("star", "red")],
        [RED_STAR, {**STAR, "color": "blue"}],
        [],
        0,
        3 / 4 * 2 / 3,
    ),
    # position
    ("dog left", [thing("star", x=50), thing("dog", x=0)], DOG_LEFT, [], 1, 1.0),
    ("dog right", [thing("star", x=0), thing("dog", x=50)], DOG_LEFT, [], 0, 2 / 3),
    ("dog above", [thing("star", y=50), thing("dog", y=0)], DOG_LEFT, [], 0, 2 / 3),
    ("no target", [thing("dog")], DOG_LEFT, [], 0, 1 / 3),
    (
        "target named later",
        [thing("star", x=0), thing("dog", x=50)],
        [{**STAR, "position": ["left of", 1]}, DOG],
        [],
        1,
        1.0,
    ),
    (
        "every pair must stand so",
        [thing("star", x=50), thing("dog", x=0), thing("dog", x=90)],
        [STAR, {"class": "dog", "count": 2, "position": ["left of", 0]}],
        [],
        0,
        (1 + 1 + 1 / 2) / 3,
    ),
]


@pytest.mark.parametrize(
    "detections, include, exclude, strict, graded", [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_planted_scene_scores_as_worked_out_by_hand(detections, include, exclude, strict, graded):
    score = score_scene(detections, include, exclude)
    assert score.strict == strict
    assert score.graded == pytest.approx(graded)
    assert (score.reason == "as asked") == bool(strict)


def test_only_the_best_boxes_are_compared_and_ties_keep_their_order():
    red_first = [thing("star", "red", score=0.5), thing("star", "blue", score=0.5)]
    assert score_scene(red_first, [RED_STAR]).color == 1.0
    assert score_scene(red_first[::-1], [RED_STAR]).color == 0.0
    blue_better = [thing("star", "red", score=0.5), thing("star", "blue", score=0.6)]
    assert score_scene(blue_better, [RED_STAR]).color == 0.0


def test_reason_tells_what_is_wrong():
    assert score_scene(row(2), [THREE]).reason == "found 2 stars, wanted 3"
    assert score_scene(row(1, color="blue"), [RED_STAR]).reason == "star is blue, wanted red"
    wrong_side = [thing("star"), thing("dog", x=50)]
    assert score_scene(wrong_side, DOG_LEFT).reason == "dog is not left of star"
    assert score_scene([*row(1), thing("unknown")], [STAR]).reason == "unexpected 1 unknown"


def test_parts_are_none_where_nothing_asks_for_them():
    parts = score_scene([*row(1), thing("dog")], [STAR]).parts
    assert parts == {
        "count": 1,
        "color": None,
        "position": None,
        "precision": 0.5,
        "excess_objects": 1,
        "strict": 0,
    }


@pytest.mark.parametrize(
    "gap, expected",
    [
        (2.0, set()),  # centres 2 apart, sizes 10 + 10: exactly the margin of 2
        (4.0, set()),  # (4 - 2) / 4 is exactly a half, and a half is not enough
        (4.01, {"left of"}),
        (-4.01, {"right of"}),
        (0.0, set()),
    ],
)
def test_position_margin_is_a_tenth_of_the_summed_sizes(gap: float, expected: set[str]):
    assert relations((0, 0, 10, 10), (gap, 0, 10 + gap, 10)) == expected


def test_a_diagonal_offset_is_both_relations():
    assert relations((0, 0, 10, 10), (60, 60, 70, 70)) == {"left of", "above"}
    assert relations((60, 60, 70, 70), (0, 0, 10, 10)) == {"right of", "below"}


def test_bigger_boxes_need_a_bigger_distance():
    assert relations((0, 0, 10, 10), (12, 0, 22, 10)) == {"left of"}
    assert relations((-45, 0, 55, 100), (-33, 0, 67, 100)) == set()


@pytest.mark.parametrize(
    "include, words",
    [
        ([{"count": 1}], "names no class"),
        ([{"class": "star", "count": 0}], "count must be at least 1"),
        ([STAR, {**DOG, "position": ["beside", 0]}], "unknown position 'beside'"),
        ([STAR, {**DOG, "position": ["left of", 1]}], "no other entry"),
        ([STAR, {**DOG, "position": ["left of", 7]}], "no other entry"),
        ([], "include is empty"),
    ],
)
def test_a_wrong_clause_is_an_error_that_names_it(include, words):
    with pytest.raises(ValueError, match=words):
        score_scene([], include)


class PlantedDetector:
    """Reads the number of stars from the first pixel."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        return row(int(image[0, 0, 0]))


def test_reward_scores_pictures_and_skips_rows_that_ask_for_nothing():
    def photo(stars: int) -> Image.Image:
        return Image.fromarray(np.full((4, 4, 3), stars, dtype=np.uint8))

    logged: dict[str, list] = {}
    include = [[THREE], [THREE], None, [], [THREE]]
    images = [photo(3), photo(2), photo(3), photo(3), None]
    for mode, second in (("graded", 2 / 3), ("strict", 0.0)):
        reward = ObjectsReward(PlantedDetector(), mode=mode)
        scores = reward(generated_images=images, include=include, log_extra=logged.__setitem__)
        assert scores == [1.0, pytest.approx(second), None, None, None]
    assert logged["count"] == [1.0, pytest.approx(2 / 3), None, None, None]
    assert logged["reason"][:3] == ["as asked", "found 2 stars, wanted 3", None]


def test_detector_is_found_by_path_and_mode_is_checked():
    reward = ObjectsReward(f"{__name__}:PlantedDetector")
    assert isinstance(reward.detector, PlantedDetector)
    with pytest.raises(ValueError, match="mode must be"):
        ObjectsReward(PlantedDetector(), mode="lenient")


@pytest.mark.skipif(not GENEVAL.exists(), reason="GenEval's prompts are not beside this checkout")
def test_every_geneval_prompt_scores_a_scene_planted_to_its_wish():
    lines = [json.loads(line) for line in GENEVAL.read_text().splitlines()]
    assert len(lines) == 553
    for line in lines:
        scene = _plant(line["include"])
        exclude = line.get("exclude", [])
        assert score_scene(scene, line["include"], exclude).strict == 1.0, line
        assert score_scene(scene[:-1], line["include"], exclude).strict == 0.0, line
        assert score_scene([*scene, thing("intruder")], line["include"], exclude).strict == 0.0, line


def _plant(include: list[dict]) -> list[Detection]:
    offsets = {"left of": (-60, 0), "right of": (60, 0), "above": (0, -60), "below": (0, 60)}
    scene: list[Detection] = []
    for clause in include:
        dx, dy = offsets[clause["position"][0]] if "position" in clause else (0, 0)
        for _ in range(clause["count"]):
            scene.append(thing(clause["class"], clause.get("color"), x=dx, y=dy))
    return scene
