"""Scenes: sampling keeps its rules, rendering is exact, and descriptions are read back or refused."""

from __future__ import annotations

import hashlib
import itertools
import json

import numpy as np
import pytest

from dina.recipes.scenes.concepts import COMBOS, NOVEL_COMBOS, NOVEL_WORDS, SEEN_COMBOS, WORDS
from dina.recipes.scenes.shapes import COLORS, GAP, GROUND, INK, SHAPES, SIZES, TOKEN, shape_mask
from dina.recipes.scenes.world import (
    OPPOSITE,
    Obj,
    Scene,
    SceneError,
    compose,
    holds,
    place,
    render,
    render_json,
    sample_canvas,
    sample_scene,
    sample_text_scene,
    scene_from_json,
    scene_to_json,
)


def some_scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    drawn = [sample_scene(rng, COMBOS) for _ in range(count)]
    return drawn + [sample_text_scene(rng, word) for word in WORDS]


def test_objects_lie_inside_and_apart():
    for scene in some_scenes(300):
        for o in scene.objects:
            reach = SIZES[o.size] + GAP
            assert reach <= o.cx <= scene.width - reach and reach <= o.cy <= scene.height - reach
            assert o.cx % 4 == 0 and o.cy % 4 == 0
        for a, b in itertools.combinations(scene.objects, 2):
            distance = max(abs(a.cx - b.cx), abs(a.cy - b.cy))
            assert distance >= SIZES[a.size] + SIZES[b.size] + 2


def test_words_lie_on_the_token_lattice():
    for scene in some_scenes(0):
        x, y = scene.text_at
        assert x % TOKEN == 0 and y % TOKEN == 0
        picture = render(scene)
        rim = np.concatenate([picture[:8].reshape(-1, 3), picture[-8:].reshape(-1, 3)])
        assert (rim == GROUND).all()


def test_about_one_in_seven_pictures_is_not_square():
    rng = np.random.default_rng(0)
    canvases = [sample_canvas(rng) for _ in range(4000)]
    assert abs(sum(c != (64, 64) for c in canvases) / 4000 - 0.15) < 0.02
    assert {(96, 64), (64, 96)} <= set(canvases)


def test_rendering_paints_the_colours_where_they_belong():
    picture = render(Scene((Obj("square", "red", "small", 20, 40),), width=96, height=64))
    assert picture.shape == (64, 96, 3) and picture.dtype == np.uint8
    assert tuple(picture[40, 20]) == COLORS["red"]
    assert tuple(picture[40, 12 - 1]) == GROUND and tuple(picture[31, 20]) == GROUND
    ring = render(Scene((Obj("ring", "blue", "large", 32, 32),)))
    assert tuple(ring[32, 32]) == GROUND and tuple(ring[32, 32 + 9]) == COLORS["blue"]


def test_shape_masks_have_the_areas_of_their_figures():
    half = 11.5
    areas = {shape: float(shape_mask(shape, half, 24).sum()) for shape in SHAPES}
    assert areas["circle"] == pytest.approx(np.pi * half**2, rel=0.01)
    assert areas["square"] == pytest.approx((1.8 * half) ** 2, rel=0.02)
    assert areas["triangle"] == pytest.approx(1.82 * half**2, rel=0.02)
    assert areas["cross"] == pytest.approx((4 * 0.66 - 0.66**2) * half**2, rel=0.03)
    assert areas["ring"] == pytest.approx(np.pi * (1 - 0.52**2) * half**2, rel=0.01)
    assert areas["star"] == pytest.approx(5 * 1.05 * 0.42 * np.sin(np.pi / 5) * half**2, rel=0.02)


def test_rendering_is_the_same_every_time():
    pictures = [render(scene) for scene in some_scenes(20)]
    again = [render(scene_from_json(json.loads(json.dumps(scene_to_json(s))))) for s in some_scenes(20)]
    digests = [hashlib.sha256(p.tobytes()).hexdigest() for p in pictures]
    assert digests == [hashlib.sha256(p.tobytes()).hexdigest() for p in again]
    assert len(set(digests)) > 60


def test_scenes_survive_json():
    for scene in some_scenes(50):
        assert scene_from_json(json.loads(json.dumps(scene_to_json(scene)))) == scene
    assert (render_json(scene_to_json(scene)) == render(scene)).all()


def test_text_is_ink_on_ground():
    picture = render(Scene((), "HAT", 64, 64, (16, 24))).astype(int)
    assert np.abs(picture - INK).sum(axis=-1).min() == 0
    changed = np.abs(picture - GROUND).sum(axis=-1) > 0
    assert changed[24:40, 16:40].any() and not changed[:, :16].any() and not changed[:, 40:].any()


@pytest.mark.parametrize("relation", OPPOSITE)
def test_relations_are_drawn_and_exclude_each_other(relation):
    rng = np.random.default_rng(1)
    for _ in range(40):
        a, b = compose(rng, [("star", "red"), ("ring", "blue")], relation=relation).objects
        first, second = (a.cx, a.cy), (b.cx, b.cy)
        assert holds(first, relation, second) and holds(second, OPPOSITE[relation], first)
        assert sum(holds(first, other, second) for other in OPPOSITE) == 1


def test_too_many_objects_are_refused():
    with pytest.raises(SceneError, match="no room for 9 objects in 64×64"):
        place(np.random.default_rng(0), ["large"] * 9, 64, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, r"needs 'size': \[width, height\]"),
        ({"size": [60, 64]}, "multiples of 8"),
        (
            {"objects": [{"shape": "sun", "color": "red", "size": "small", "at": [32, 32]}]},
            "'sun' is not one of",
        ),
        ({"objects": [{"shape": "star", "color": "red", "size": "small"}]}, "'at' must be"),
        (
            {"objects": [{"shape": "star", "color": "red", "size": "large", "at": [4, 32]}]},
            "does not lie inside",
        ),
        ({"text": "cat", "text_at": [8, 8]}, "letters A to Z"),
        ({"text": "ELEPHANT", "text_at": [8, 8]}, "letters A to Z that fit"),
    ],
)
def test_wrong_scenes_are_refused_with_the_reason(change, message):
    with pytest.raises(SceneError, match=message):
        scene_from_json({"size": [64, 64]} | change)


def test_novel_combinations_leave_every_shape_and_colour_well_known():
    assert len(NOVEL_COMBOS) == len(SHAPES) and set(NOVEL_COMBOS).isdisjoint(SEEN_COMBOS)
    assert all(sum(s == shape for s, _ in SEEN_COMBOS) >= 6 for shape in SHAPES)
    assert all(sum(c == color for _, c in SEEN_COMBOS) >= 5 for color in COLORS)
    assert set(NOVEL_WORDS).isdisjoint(WORDS) and set("".join(NOVEL_WORDS)) <= set("".join(WORDS))
