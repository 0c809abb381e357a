"""The detector and OCR read what is drawn, and junk is seen as junk."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dina.recipes.scenes.captions import DRAWING_TAGS
from dina.recipes.scenes.concepts import NOVEL_WORDS, WORDS
from dina.recipes.scenes.detector import ShapeDetector
from dina.recipes.scenes.measure import (
    blurred,
    degradations,
    interval,
    read_alike,
    read_exactly,
    scenes,
    text_scenes,
)
from dina.recipes.scenes.shapes import COLORS, GROUND, SHAPES
from dina.recipes.scenes.splits import split_concepts
from dina.recipes.scenes.world import Obj, Scene, render
from dina.rewards.detection import Detection
from dina.rewards.objects import ObjectsReward
from dina.rewards.ocr import OCRReward


@pytest.fixture(scope="module")
def detector() -> ShapeDetector:
    return ShapeDetector()


@pytest.mark.parametrize("name", degradations(0))
def test_whole_scenes_are_read_exactly(detector, name):
    degrade = degradations(0)[name]
    some = scenes(150, seed=11)
    assert sum(read_exactly(scene, detector.detect(degrade(render(scene)))) for scene in some) >= 149


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_boxes_enclose_the_object(detector, shape, size):
    picture = render(Scene((Obj(shape, "green", size, 40, 24),), width=96, height=64))
    (found,) = detector.detect(picture)
    half = {"small": 8, "large": 12}[size]
    x0, y0, x1, y1 = found.box
    assert (x0 + x1) / 2 == pytest.approx(40, abs=1) and (y0 + y1) / 2 == pytest.approx(24, abs=1.5)
    assert x1 - x0 <= 2 * half and y1 - y0 <= 2 * half and x1 - x0 >= 1.6 * half
    assert found.score > 0.8


def test_colours_may_be_a_little_off(detector):
    rng = np.random.default_rng(3)
    for scene in scenes(60, seed=12):
        shifted = render(scene) * 0.92 + rng.uniform(0, 18, 3)
        assert read_exactly(scene, detector.detect(shifted.astype(np.uint8)))


def test_pictures_of_any_size_are_read(detector):
    scene = Scene((Obj("star", "red", "large", 24, 40), Obj("ring", "blue", "small", 48, 16)))
    large = cv2.resize(render(scene), (192, 192), interpolation=cv2.INTER_LINEAR)
    assert read_exactly(scene, detector.detect(large))
    assert detector.detect(render(Scene(width=8, height=8))) == []


def test_words_are_text_and_no_shape(detector):
    for scene in text_scenes(60, 0, WORDS + NOVEL_WORDS):
        assert [d.label for d in detector.detect(render(scene))] == ["text"]


def test_specks_are_ignored_and_blots_are_unknown(detector):
    picture = render(Scene())
    picture[10:13, 10:13] = COLORS["red"]
    assert detector.detect(picture) == []
    picture[30:36, 20:44] = COLORS["red"]
    (found,) = detector.detect(picture)
    assert (found.label, found.color) == ("unknown", "red")


def test_a_line_across_a_large_picture_is_no_shape_and_no_failure(detector):
    image = np.full((64, 700, 3), GROUND, np.uint8)
    image[30:32] = COLORS["red"]
    assert [d.label for d in detector.detect(image)] == ["unknown"]


def test_touching_objects_of_two_colours_are_two_things(detector):
    touching = Scene((Obj("square", "red", "large", 20, 32), Obj("circle", "blue", "large", 42, 32)))
    assert read_exactly(touching, detector.detect(blurred(render(touching), 0.6)))


def test_a_patch_of_another_colour_costs(detector):
    picture = render(Scene((Obj("square", "red", "large", 32, 32),)))
    picture[24:32, 24:32] = COLORS["blue"]
    assert [(d.label, d.color) for d in detector.detect(picture)] != [("square", "red")]


def test_random_blocks_are_hardly_ever_shapes(detector):
    rng = np.random.default_rng(0)
    palette = np.array([*COLORS.values(), GROUND], np.uint8)
    labels = [
        d.label
        for _ in range(20)
        for d in detector.detect(palette[rng.integers(0, 9, (8, 8))].repeat(8, 0).repeat(8, 1))
    ]
    assert len(labels) > 200 and labels.count("unknown") > 0.95 * len(labels)


def test_reading_alike_compares_shapes_colours_and_places():
    star = Detection("star", "red", (10, 10, 26, 26), 0.9)
    near = Detection("star", "red", (12, 9, 28, 25), 0.8)
    assert read_alike([star], [near]) and read_alike([], [])
    assert not read_alike([star], [Detection("star", "red", (20, 10, 36, 26), 0.9)])
    assert not read_alike([star], [Detection("star", "pink", star.box, 0.9)])
    assert not read_alike([star], [star, near]) and not read_alike([star, near], [star])


def test_wilson_interval():
    low, high = interval(95, 100)
    assert (low, high) == (pytest.approx(0.8882, abs=1e-3), pytest.approx(0.9785, abs=1e-3))
    assert interval(10, 10)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("tag", [tag for tag in DRAWING_TAGS if tag != "text_rendering"])
def test_the_picture_of_a_concept_earns_the_full_reward(tag):
    reward = ObjectsReward(mode="strict")
    rng = np.random.default_rng(7)
    for split in ("train", "test"):
        options = split_concepts(tag, split)
        for i in rng.integers(len(options), size=12):
            concept = options[i]
            checks = concept.checks
            score = reward.score(render(concept.picture(rng)), checks["include"], checks.get("exclude", ()))
            assert score.strict == 1.0, (concept, score.problems)


def test_ocr_reads_the_words():
    reader = OCRReward()
    values = []
    for scene in text_scenes(20, 4, WORDS[::3]):
        values.append(reader.compare(reader.read(render(scene)), [scene.text]).similarity)
    assert np.mean(values) >= 0.95
