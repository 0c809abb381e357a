"""The splits share no prompt, no held-out concept and no question's picture, and training shows nothing novel."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from dina.recipes.scenes.build import sft_rows
from dina.recipes.scenes.captions import DRAWING_TAGS, Concept
from dina.recipes.scenes.concepts import NOVEL_COMBOS, NOVEL_WORDS, TAGS
from dina.recipes.scenes.questions import ANSWERS, KINDS, NUMBERS
from dina.recipes.scenes.splits import (
    description_rows,
    held_out_captions,
    held_out_scenes,
    prompt_rows,
    question_rows,
    scene_key,
    seen_concepts,
    split_concepts,
    unpractised_keys,
)
from dina.recipes.scenes.world import Scene, holds, scene_from_json

SPLITS = ("train", "dev", "dev_large", "dev_second", "dev_third", "test", "unpractised", "novel")


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[dict]]:
    return {split: prompt_rows(split) for split in SPLITS}


@pytest.fixture(scope="module")
def sft() -> list[dict]:
    return list(sft_rows(3000, seed=5))


@pytest.fixture(scope="module")
def binding() -> list[dict]:
    return list(sft_rows(1500, seed=5, mixture="binding"))


def test_every_tag_has_enough_distinct_prompts(prompts):
    least = {
        "train": 300,
        "dev": 24,
        "dev_large": 60,
        "dev_second": 60,
        "dev_third": 60,
        "test": 192,
        "unpractised": 20,
        "novel": 20,
    }
    for split, rows in prompts.items():
        distinct = {(row["tag"], row["prompt"]) for row in rows}
        assert len(distinct) == len(rows)
        counts = Counter(row["tag"] for row in rows)
        assert set(counts) == set(DRAWING_TAGS) and min(counts.values()) >= least[split]
    assert sum(row["tag"] in TAGS for row in prompts["test"]) == 6 * 192


def test_no_prompt_is_in_two_splits(prompts):
    for a, b in itertools.combinations(SPLITS, 2):
        shared = {row["prompt"] for row in prompts[a]} & {row["prompt"] for row in prompts[b]}
        assert not shared, (a, b)


@pytest.mark.parametrize("tag", [tag for tag in DRAWING_TAGS if tag != "single_object"])
def test_unpractised_concepts_are_a_quarter_and_not_trained_on(tag):
    held, everything = unpractised_keys(tag), {c.key for c in seen_concepts(tag)}
    assert 0.15 < len(held) / len(everything) < 0.35
    assert held == {c.key for c in split_concepts(tag, "unpractised")}
    for split in SPLITS[:-2]:
        assert everything - held == {c.key for c in split_concepts(tag, split)}


def asked(row: dict) -> tuple:
    """What a row asks for, read from its checks alone, in an order that does not depend on the wording."""
    if row["tag"] == "text_rendering":
        return tuple(row["text"])
    clauses = [(c["class"], c.get("color"), c["count"]) for c in row["include"]]
    match row["tag"]:
        case "two_object":
            return tuple(sorted(shape for shape, _, _ in clauses))
        case "position":
            (relation, _), a, b = row["include"][1]["position"], clauses[1][0], clauses[0][0]
            return {
                "left of": ("x", a, b),
                "right of": ("x", b, a),
                "above": ("y", a, b),
                "below": ("y", b, a),
            }[relation]
    return tuple(sorted(clauses, key=repr))


def test_what_unpractised_rows_check_is_in_no_train_row(prompts):
    trained = {(row["tag"], asked(row)) for row in prompts["train"]}
    for row in prompts["unpractised"]:
        assert row["tag"] == "single_object" or (row["tag"], asked(row)) not in trained, row


def novel_named(row: dict) -> bool:
    named = {(c["class"], c.get("color")) for c in row.get("include", [])}
    return bool(named & set(NOVEL_COMBOS)) or bool(set(row.get("text", [])) & set(NOVEL_WORDS))


def test_novel_prompts_and_only_these_name_something_never_seen(prompts):
    assert all(novel_named(row) for row in prompts["novel"])
    assert not any(novel_named(row) for split in SPLITS[:-1] for row in prompts[split])


def test_sft_shows_nothing_novel_and_says_nothing_held_out(sft, binding, prompts):
    captions = {row["prompt"] for split in SPLITS[1:] for row in prompts[split]}
    assert captions == held_out_captions()
    for row in sft + binding:
        scene = scene_from_json(json.loads(row["scene"]))
        assert not {o.combo for o in scene.objects} & set(NOVEL_COMBOS)
        assert scene.text not in NOVEL_WORDS
        assert scene_key(scene) not in held_out_scenes()
        assert row["task"] == "vqa" or row["prompt"] not in captions
        for shape, color in NOVEL_COMBOS:
            assert f"{color} {shape}" not in row["prompt"]


def test_sft_sees_the_concepts_of_the_test_prompts_in_other_words(sft):
    drawn = {o for row in sft if row["tag"] == "colors" for o in [row["scene"]]}
    shown = {scene_from_json(json.loads(scene)).objects[0].combo for scene in drawn}
    assert {c.named[0] for c in split_concepts("colors", "test")} <= shown
    held = [c for tag in TAGS for split in ("test", "unpractised") for c in split_concepts(tag, split)]
    assert all(any(w not in held_out_captions() for w in c.wordings()) for c in held)


def test_sft_mixes_tasks(sft):
    counts = Counter(row["tag"] for row in sft)
    assert abs(counts["vqa"] / len(sft) - 0.3) < 0.04
    assert all(counts[tag] > 0.07 * len(sft) for tag in DRAWING_TAGS)


def test_the_binding_mixture_says_more_about_colours_and_places(binding):
    counts = Counter(row["tag"] for row in binding)
    assert counts["position"] + counts["color_attr"] + counts["description"] > 0.4 * len(binding)
    assert all(counts[tag] for tag in DRAWING_TAGS)


def test_descriptions_say_what_the_scene_holds(binding):
    for row in binding:
        if row["tag"] != "description":
            continue
        objects = scene_from_json(json.loads(row["scene"])).objects
        words = row["prompt"].replace(",", "").split()
        assert sorted(w for w in words if w in KNOWN) == sorted(o.shape for o in objects)
        for color in {w for w in words if w in ANSWERS["color"]}:
            assert words.count(color) <= sum(o.color == color for o in objects)
        if len(objects) == 1 and "at the" in row["prompt"]:
            (obj,) = objects
            assert ("left" in words) == (obj.cx < scene_width(row) / 3)


def scene_width(row: dict) -> int:
    return scene_from_json(json.loads(row["scene"])).width


def right_answer(row: dict) -> str:
    """The answer worked out from the scene, by the words of the question."""
    scene: Scene = scene_from_json(row["scene"])
    words = row["prompt"].rstrip("?.").replace(",", "").replace(":", "").split()
    singular = {o.shape: o for o in scene.objects}
    if row["kind"] == "text":
        return scene.text or ""
    if row["kind"] == "count":
        plural = "crosses" if "crosses" in words else next((w for w in words if w[:-1] in KNOWN), "")
        shape = plural[:-2] if plural == "crosses" else plural[:-1]
        colors = [w for w in words if w in ANSWERS["color"]]
        found = [o for o in scene.objects if (o.color in colors if colors else o.shape == shape)]
        return NUMBERS[len(found)]
    if row["kind"] == "color":
        return singular[next(w for w in words if w in KNOWN)].color
    if row["kind"] == "shape":
        (found,) = [o.shape for o in scene.objects if o.color in words]
        return found
    if row["kind"] == "exists":
        shape = next(w for w in words if w in KNOWN)
        color = next((w for w in words if w in ANSWERS["color"]), None)
        return "yes" if any(o.shape == shape and color in (None, o.color) for o in scene.objects) else "no"
    a, b = (singular[w] for w in words if w in KNOWN)
    first, second = (a.cx, a.cy), (b.cx, b.cy)
    if words[0] == "where":
        return next(r.split()[0] for r in RELATIONS if holds(first, r, second))
    relation = next(r for r in RELATIONS if f" {r} " in row["prompt"])
    return "yes" if holds(first, relation, second) else "no"


KNOWN = set(ANSWERS["shape"])
RELATIONS = ("left of", "right of", "above", "below")


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_questions_have_right_and_balanced_answers(split):
    rows = question_rows(split)
    assert all(row["answer"] == right_answer(row) for row in rows)
    for kind in KINDS:
        counts = Counter(row["answer"] for row in rows if row["kind"] == kind)
        total = sum(counts.values())
        assert set(counts) <= set(ANSWERS[kind])
        assert all(n <= ANSWERS[kind][answer] * total + 1 for answer, n in counts.items()), kind


@pytest.mark.parametrize("rows", [question_rows, description_rows])
def test_pictures_of_questions_are_in_one_split_only(rows):
    keys = {s: {scene_key(scene_from_json(r["scene"])) for r in rows(s)} for s in ("train", "dev", "test")}
    assert all(keys[a].isdisjoint(keys[b]) for a, b in itertools.combinations(keys, 2))
    assert len(keys["test"]) == len(rows("test")) >= 160


def test_wordings_are_many_and_all_are_distinct():
    concept: Concept = split_concepts("position", "test")[0]
    wordings = list(concept.wordings())
    assert len(wordings) == len(set(wordings)) >= 8
