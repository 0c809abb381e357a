"""The splits: which concepts and prompts belong to which, and the rows of the prompt files.

* Reinforcement learning trains on ``train``. The dev splits guide choices, ``test`` guides none; their prompts are
  others, of the same concepts.
* ``unpractised`` asks for concepts (see ``Concept.key``) that reinforcement learning never trains on. Single objects
  have too few concepts for that, there only the prompts differ.
* SFT sees the concepts of all of these in other words, and never a prompt that is held out.
* ``novel`` names combinations and words that no training picture shows.
* The pictures of the dev and test questions are in no training data, those of the descriptions in none that teaches
  to describe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from math import ceil
from typing import Any

import numpy as np

from dina.recipes.scenes.captions import DETAILED, DRAWING_TAGS, Concept, concepts, text_concepts
from dina.recipes.scenes.concepts import COMBOS, NOVEL_COMBOS, NOVEL_WORDS, SEED, SEEN_COMBOS, WORDS
from dina.recipes.scenes.descriptions import sample_request
from dina.recipes.scenes.questions import ANSWERS, KINDS, Question
from dina.recipes.scenes.world import Scene, sample_canvas, scene_to_json

Row = dict[str, Any]

PER_TAG = {
    "train": 320,
    "dev": 28,
    "dev_large": 64,
    "dev_second": 64,
    "dev_third": 64,
    "test": 192,
    "unpractised": 24,
    "novel": 24,
}
"""Prompts per tag and split; ``train`` holds :data:`MORE_TRAINING` besides."""
MORE_TRAINING = {"counting": 960, "position": 960, "color_attr": 960, "text_rendering": 320}
"""Further training prompts of the tags that are practised most."""
_PURPOSES = {
    "dev_large": "test",
    "dev_second": "second test",
    "dev_third": "third test",
    "test": "fourth test",
}
"""Names of the splits' generators where they are not the split's. A test split that has guided a choice becomes a dev
split under its old generator, and a new one is drawn."""
_DRAWN = ("dev_large", "dev", "unpractised", "novel", "train", "dev_second", "dev_third", "test")
"""The order in which the splits choose captions; none takes what an earlier one has. The further training prompts
choose last, so that their number changes no split that is held out."""
HELD_OUT = tuple(split for split in _DRAWN if split != "train")
"""The splits whose prompts no training ever sees."""
PER_KIND = {"train": 200, "dev": 20, "test": 70}
"""Questions per kind and split."""
DESCRIPTIONS = {"train": 300, "dev": 48, "test": 160}
"""Requests for a whole description per split."""
_UNPRACTISED = 0.25
"""Share of a tag's concepts that reinforcement learning never trains on."""


def _rng(*path: str) -> np.random.Generator:
    """A generator for one named purpose, so that adding another changes nothing here."""
    return np.random.default_rng([SEED, *(byte for part in path for byte in part.encode())])


def _parts(key: Any) -> Iterator[str]:
    """The words and numbers that a key is made of."""
    if isinstance(key, tuple):
        for item in key:
            yield from _parts(item)
    else:
        yield str(key)


def _stratum(tag: str, key: Any) -> Any:
    """What every split must hold in the same proportion: numbers with and without a colour, and the axes."""
    if tag == "counting":
        count, _, color = key
        return count, color is None
    return key[0] if tag == "position" else None


@cache
def seen_concepts(tag: str) -> tuple[Concept, ...]:
    """Every concept of a tag that training pictures may show."""
    return text_concepts(WORDS) if tag == "text_rendering" else concepts(tag, SEEN_COMBOS)


@cache
def novel_concepts(tag: str) -> tuple[Concept, ...]:
    """Every concept of a tag that names a combination (or word) that no training picture shows."""
    if tag == "text_rendering":
        return text_concepts(NOVEL_WORDS)
    return tuple(c for c in concepts(tag, COMBOS) if any(combo in NOVEL_COMBOS for combo in c.named))


@cache
def unpractised_keys(tag: str) -> frozenset[Any]:
    """The concept keys that reinforcement learning never trains on; the others hold every word that keys use.

    All keys of a tag that has but one.
    """
    keys = sorted({c.key for c in seen_concepts(tag)}, key=repr)
    if len(keys) == 1:
        return frozenset(keys)
    strata = sorted({_stratum(tag, key) for key in keys}, key=repr)
    words = set(_parts(tuple(keys))) if tag != "text_rendering" else set()
    rng = _rng("keys", tag)
    while True:
        held: list[Any] = []
        for stratum in strata:
            group = [key for key in keys if _stratum(tag, key) == stratum]
            held += [group[i] for i in rng.permutation(len(group))[: round(_UNPRACTISED * len(group))]]
        if words <= set(_parts(tuple(key for key in keys if key not in held))):
            return frozenset(held)


def split_concepts(tag: str, split: str) -> tuple[Concept, ...]:
    """The concepts of a tag in a split; train, the dev splits and test have the same."""
    if split == "novel":
        return novel_concepts(tag)
    held = unpractised_keys(tag)
    if split == "unpractised":
        return tuple(c for c in seen_concepts(tag) if c.key in held)
    return tuple(c for c in seen_concepts(tag) if c.key not in held or c.key is None)


def _in_turn(concepts: Sequence[Concept], rng: np.random.Generator) -> Iterator[Concept]:
    """All concepts in random order, again and again."""
    while concepts:
        for i in rng.permutation(len(concepts)):
            yield concepts[i]


def _draws(tag: str, concepts: Sequence[Concept], rng: np.random.Generator) -> Iterator[Concept]:
    """Concepts without end: plain and detailed ones in the ratio of ``DETAILED``, each kind in turn."""
    plain = [c for c in concepts if not c.detailed]
    detailed = [c for c in concepts if c.detailed]
    turns = {False: _in_turn(plain, rng), True: _in_turn(detailed, rng)}
    share = DETAILED.get(tag, 0.0) if plain else 1.0
    while True:
        yield next(turns[bool(rng.random() < share)])


@cache
def _captions(tag: str) -> dict[str, tuple[tuple[Concept, str], ...]]:
    """Distinct captions of a tag per split; no two splits share one."""
    taken: set[str] = set()

    def choose(split: str, purpose: str, count: int) -> tuple[tuple[Concept, str], ...]:
        rng = _rng("captions", tag, purpose)
        draws = _draws(tag, split_concepts(tag, split), rng)
        chosen: list[tuple[Concept, str]] = []
        while len(chosen) < count:
            concept = next(draws)
            caption = concept.wording(rng)
            if caption not in taken:
                chosen.append((concept, caption))
                taken.add(caption)
        return tuple(chosen)

    out = {split: choose(split, _PURPOSES.get(split, split), PER_TAG[split]) for split in _DRAWN}
    out["train"] += choose("train", "more train", MORE_TRAINING.get(tag, 0))
    return out


@cache
def held_out_captions() -> frozenset[str]:
    """The prompts of :data:`HELD_OUT`, which no training data may hold."""
    return frozenset(
        caption for tag in DRAWING_TAGS for split in HELD_OUT for _, caption in _captions(tag)[split]
    )


def prompt_rows(split: str) -> list[Row]:
    """The drawing prompts of a split (a key of :data:`PER_TAG`) as rows of a prompt file."""
    rows: list[Row] = []
    rng = _rng("canvas", _PURPOSES.get(split, split))
    for tag in DRAWING_TAGS:
        for i, (concept, caption) in enumerate(_captions(tag)[split]):
            width, height = sample_canvas(rng)
            grid = list(Scene(width=width, height=height).grid)
            head = {"id": f"{split}-{tag}-{i:03d}", "task": "t2i", "tag": tag, "prompt": caption}
            rows.append(head | concept.checks | {"grid": grid})
    return rows


def scene_key(scene: Scene) -> str:
    """Equal for equal pictures."""
    objects = tuple(sorted(scene.objects, key=repr))
    return json.dumps(scene_to_json(Scene(objects, scene.text, scene.width, scene.height, scene.text_at)))


@cache
def _questions() -> dict[str, tuple[Question, ...]]:
    """Questions per split, each about a picture of its own, the answers of a kind equally often."""
    taken: set[str] = set()
    out: dict[str, tuple[Question, ...]] = {}
    for split in ("test", "dev", "train"):
        chosen: list[Question] = []
        for kind, ask in KINDS.items():
            rng = _rng("questions", kind, split)
            left = {answer: ceil(share * PER_KIND[split]) for answer, share in ANSWERS[kind].items()}
            mine: dict[str, Question] = {}
            while len(mine) < PER_KIND[split]:
                question = ask(rng)
                key = scene_key(question.scene)
                if left[question.answer] and key not in taken and key not in mine:
                    mine[key] = question
                    left[question.answer] -= 1
            chosen += mine.values()
            taken |= mine.keys()
        out[split] = tuple(chosen)
    return out


@cache
def held_out_scenes() -> frozenset[str]:
    """Keys of the pictures of the dev and test questions, which no training data may hold."""
    return frozenset(scene_key(q.scene) for split in ("dev", "test") for q in _questions()[split])


def question_rows(split: str) -> list[Row]:
    """The questions of ``train``, ``dev`` or ``test`` as rows of a prompt file, with scenes to render."""
    return [
        {
            "id": f"{split}-vqa-{i:04d}",
            "task": "vqa",
            "tag": "vqa",
            "kind": q.kind,
            "prompt": q.prompt,
            "answer": q.answer,
            "scene": scene_to_json(q.scene),
            "grid": list(q.scene.grid),
        }
        for i, q in enumerate(_questions()[split])
    ]


@cache
def _requests() -> dict[str, tuple[Question, ...]]:
    """Requests for descriptions per split, each about a picture of its own."""
    taken = set(held_out_scenes())
    out: dict[str, tuple[Question, ...]] = {}
    for split in ("test", "dev", "train"):
        rng = _rng("descriptions", split)
        mine: dict[str, Question] = {}
        while len(mine) < DESCRIPTIONS[split]:
            question = sample_request(rng)
            if (key := scene_key(question.scene)) not in taken:
                mine[key] = question
                taken.add(key)
        out[split] = tuple(mine.values())
    return out


@cache
def held_out_described() -> frozenset[str]:
    """Keys of the pictures that dev and test ask to describe; no data that teaches to describe may hold them."""
    return frozenset(scene_key(q.scene) for split in ("dev", "test") for q in _requests()[split])


def description_rows(split: str) -> list[Row]:
    """The requests for descriptions of ``train``, ``dev`` or ``test`` as rows of a prompt file."""
    return [
        {
            "id": f"{split}-description-{i:04d}",
            "task": "vqa",
            "tag": "description",
            "prompt": q.prompt,
            "answer": q.answer,
            "metric": "dina.recipes.scenes.facts:FactsReward",
            "scene": scene_to_json(q.scene),
        }
        for i, q in enumerate(_requests()[split])
    ]


def training_caption(tag: str, rng: np.random.Generator) -> tuple[Concept, str]:
    """A caption for SFT: any seen concept, in words that no held-out prompt uses."""
    pool = _training_pool(tag)
    detailed = bool(pool[True]) and (not pool[False] or rng.random() < DETAILED.get(tag, 0.0))
    options = pool[detailed]
    while True:
        concept = options[int(rng.integers(len(options)))]
        caption = concept.wording(rng)
        if caption not in held_out_captions():
            return concept, caption


@cache
def _training_pool(tag: str) -> dict[bool, tuple[Concept, ...]]:
    concepts = seen_concepts(tag)
    return {flag: tuple(c for c in concepts if c.detailed == flag) for flag in (False, True)}
