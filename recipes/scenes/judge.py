"""How well a model judges this world's pictures: ``python -m dina.recipes.scenes.judge [--model CHECKPOINT]``.

Draws the held-out concepts of the test split, has ``self_judge`` score each picture against what it shows and against
the same with one thing altered, and prints the area under the ROC curve: how probably the true one scores higher.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dina.errors import DinaError
from dina.eval.statistics import Interval, auc_interval
from dina.recipes.scenes.captions import DRAWING_TAGS, Concept, Thing
from dina.recipes.scenes.concepts import WORDS
from dina.recipes.scenes.shapes import COLORS, SHAPES
from dina.recipes.scenes.splits import split_concepts
from dina.recipes.scenes.world import OPPOSITE, render
from dina.rewards.alignment.self_judge import SelfJudgeReward

QUESTIONS = "dina.recipes.scenes.questions"
CHECKPOINT = Path(__file__).parent / "checkpoint"


@dataclass(frozen=True)
class Case:
    """A picture, what it shows, and the same with one thing altered that makes it untrue."""

    image: Image.Image
    true: Concept
    altered: Concept


def alter(concept: Concept, rng: np.random.Generator) -> Concept:
    """Changes what the concept's tag tests: shape, colour, number, relation, who wears which colour, or the word.

    Of two objects, one that the caption gives a colour gets another shape, if there is one.
    """
    first, *rest = sorted(concept.things, key=lambda thing: thing.color is None) or (Thing(""),)
    match concept.tag:
        case "text_rendering":
            words = [word for word in WORDS if word != concept.word]
            return replace(concept, word=words[int(rng.integers(len(words)))])
        case "position":
            return replace(concept, relation=OPPOSITE[concept.relation or ""])
        case "color_attr":
            (second,) = rest
            swapped = (replace(first, color=second.color), replace(second, color=first.color))
            return replace(concept, things=swapped)
        case "colors":
            colors = [color for color in COLORS if color != first.color]
            other = replace(first, color=colors[int(rng.integers(len(colors)))])
        case "counting":
            other = replace(first, count=int(rng.choice([n for n in (2, 3, 4) if n != first.count])))
        case _:
            shapes = [shape for shape in SHAPES if shape not in [thing.shape for thing in concept.things]]
            other = replace(first, shape=shapes[int(rng.integers(len(shapes)))])
    return replace(concept, things=(other, *rest))


def cases(tag: str, count: int, seed: int) -> Iterator[Case]:
    """Pictures of random concepts of the test split."""
    rng = np.random.default_rng([seed, DRAWING_TAGS.index(tag)])
    concepts = split_concepts(tag, "test")
    for index in rng.integers(len(concepts), size=count).tolist():
        concept = concepts[index]
        yield Case(Image.fromarray(render(concept.picture(rng))), concept, alter(concept, rng))


def scores(judge: SelfJudgeReward, found: list[Case]) -> tuple[list[float], list[float]]:
    """The judge's scores of the true and of the altered concepts, of the cases that its questions tell apart."""
    told = [case for case in found if _questions(judge, case.true) != _questions(judge, case.altered)]
    true, altered = (
        judge(
            [""] * len(told),
            [case.image for case in told],
            include=[concept.checks.get("include") for concept in side],
            text=[concept.checks.get("text") for concept in side],
        )
        for side in ([case.true for case in told], [case.altered for case in told])
    )
    pairs = [(a, b) for a, b in zip(true, altered, strict=True) if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _questions(judge: SelfJudgeReward, concept: Concept) -> list[tuple[str, str]]:
    return list(judge.questions("", concept.checks))


def measure(model: str, questions: str, per_tag: int, seed: int) -> Iterator[tuple[str, Interval]]:
    """Each tag's area under the curve, and last that of all pairs together."""
    judge = SelfJudgeReward(model, f"{QUESTIONS}:{questions}")
    every: tuple[list[float], list[float]] = ([], [])
    for tag in DRAWING_TAGS:
        true, altered = scores(judge, list(cases(tag, per_tag, seed)))
        every[0].extend(true)
        every[1].extend(altered)
        if true:
            yield tag, auc_interval(true, altered)
    yield "all", auc_interval(*every)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dina.recipes.scenes.judge", description=__doc__)
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="default: the shipped checkpoint")
    parser.add_argument(
        "--questions",
        choices=("about", "about_colors_and_words"),
        default="about",
        help="default: %(default)s",
    )
    parser.add_argument("--per-tag", type=int, default=150, help="pictures per tag (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args(argv)
    for tag, auc in measure(str(args.model), args.questions, args.per_tag, args.seed):
        print(f"{tag:<16} AUC {auc.mean:.3f}  [{auc.low:.3f}, {auc.high:.3f}]  n={auc.n}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except DinaError as error:
        raise SystemExit(f"error: {error}") from None
