"""Writes the world's files: ``python -m dina.recipes.scenes.build [--sft-out DIR --count N --seed S --mixture M]``.

Without options it rewrites the prompt files beside this module, byte for byte the same every time. With
``--sft-out`` it also writes pictures with captions and questions as a Hugging Face data set of Parquet shards.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dina.errors import DinaError
from dina.recipes.scenes.captions import DRAWING_TAGS
from dina.recipes.scenes.descriptions import (
    partial_description,
    reasoned,
    sample_description,
    sample_request,
)
from dina.recipes.scenes.questions import KINDS
from dina.recipes.scenes.splits import (
    PER_TAG,
    Row,
    description_rows,
    held_out_captions,
    held_out_described,
    held_out_scenes,
    prompt_rows,
    question_rows,
    scene_key,
    seen_concepts,
    training_caption,
)
from dina.recipes.scenes.world import Scene, render, scene_to_json

PROMPTS = Path(__file__).parent / "prompts"
_PLAIN = {
    "single_object": 1.0,
    "two_object": 1.2,
    "counting": 1.4,
    "colors": 1.0,
    "position": 1.4,
    "color_attr": 1.4,
    "text_rendering": 1.4,
}
_BINDING = _PLAIN | {"position": 4.0, "color_attr": 4.0, "description": 3.0}
MIXTURES = {"plain": _PLAIN, "binding": _BINDING, "describing": _BINDING, "reasoning": _BINDING}
"""Weights of the captions in the SFT data. ``plain`` comes first: the harder tasks a bit more often. ``binding``
is for a second stage: mostly what the first learns last, and dense captions. The others have the same captions, beside
questions some of which ask for a whole description; in ``reasoning`` some answers describe the picture first,
and descriptions that are asked for leave things out."""
QUESTION_SHARE = {"plain": 0.3, "binding": 0.3, "describing": 0.75, "reasoning": 0.75}
DESCRIPTION_SHARE = {"describing": 0.4, "reasoning": 0.2}
"""Of the questions of a mixture."""
REASONED_SHARE = {"reasoning": 0.4}
"""Of the other questions of a mixture."""
_SHARD = 5000


def prompt_files() -> dict[str, list[Row]]:
    """File name to rows of every committed prompt file."""
    files = {split: prompt_rows(split) for split in PER_TAG}
    for split in ("train", "dev", "test"):
        files |= {f"vqa_{split}": question_rows(split), f"descriptions_{split}": description_rows(split)}
    return {f"{name}.jsonl": rows for name, rows in files.items()}


def to_jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_prompts(folder: Path = PROMPTS) -> None:
    """Writes every prompt file into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in prompt_files().items():
        (folder / name).write_text(to_jsonl(rows), encoding="utf-8")


def _png(image: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".png", image[..., ::-1])
    if not ok:
        raise DinaError("OpenCV could not encode a picture as PNG")
    return data.tobytes()


def _fresh(scene: Scene, mixture: str) -> bool:
    key = scene_key(scene)
    described = mixture in DESCRIPTION_SHARE
    return key not in held_out_scenes() and not (described and key in held_out_described())


def _drawing(rng: np.random.Generator, mixture: str) -> tuple[Row, Scene]:
    tags = list(MIXTURES[mixture])
    weights = np.array(list(MIXTURES[mixture].values()))
    tag = tags[int(rng.choice(len(tags), p=weights / weights.sum()))]
    if tag == "description":
        caption, scene = sample_description(rng)
        while caption in held_out_captions():
            caption, scene = sample_description(rng)
    else:
        concept, caption = training_caption(tag, rng)
        scene = concept.picture(rng)
    return {"task": "t2i", "tag": tag, "prompt": caption, "answer": ""}, scene


def _question(rng: np.random.Generator, mixture: str) -> tuple[Row, Scene]:
    if mixture in DESCRIPTION_SHARE and rng.random() < DESCRIPTION_SHARE[mixture]:
        question = sample_request(rng)
        terse = mixture == "reasoning"
        answer = partial_description(question.scene, rng) if terse else question.answer
    else:
        question = tuple(KINDS.values())[int(rng.integers(len(KINDS)))](rng)
        reasons = mixture in REASONED_SHARE and rng.random() < REASONED_SHARE[mixture]
        answer = reasoned(question) if reasons else question.answer
    return {"task": "vqa", "tag": "vqa", "prompt": question.prompt, "answer": answer}, question.scene


def sft_rows(count: int, seed: int, start: int = 0, mixture: str = "plain") -> Iterator[Row]:
    """``count`` training rows, the first of them number ``start``: pictures with captions, or with questions.

    Row ``i`` depends on ``seed`` and ``i`` alone. No row shows or names what the splits hold out.

    Yields:
        ``task``, ``tag``, ``prompt``, ``answer``, ``scene`` (JSON), ``grid`` [rows, columns], ``image`` (PNG bytes).
    """
    for i in range(start, start + count):
        rng = np.random.default_rng([seed, i])
        make = _question if rng.random() < QUESTION_SHARE[mixture] else _drawing
        row, scene = make(rng, mixture)
        while not _fresh(scene, mixture):
            row, scene = make(rng, mixture)
        picture = {"scene": json.dumps(scene_to_json(scene)), "grid": list(scene.grid)}
        yield row | picture | {"image": {"bytes": _png(render(scene)), "path": None}}


def write_sft(folder: Path, count: int, seed: int, mixture: str = "plain") -> None:
    """Writes ``count`` rows of :func:`sft_rows` as Parquet shards that ``datasets.load_dataset(folder)`` reads."""
    from datasets import Dataset, Features, Image, List, Value

    features = Features(
        {name: Value("string") for name in ("task", "tag", "prompt", "answer", "scene")}
        | {"grid": List(Value("int32")), "image": Image()}
    )
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.parquet")):
        raise DinaError(f"{folder} already holds Parquet files; give an empty folder")
    shards = -(-count // _SHARD)
    for shard in range(shards):
        start = shard * _SHARD
        rows = list(sft_rows(min(_SHARD, count - start), seed, start, mixture))
        name = f"train-{shard:05d}-of-{shards:05d}.parquet"
        Dataset.from_list(rows, features=features).to_parquet(str(folder / name))


def corpus() -> Iterator[str]:
    """Every wording of captions, questions and answers, to train a text tokenizer on.

    Words in capitals are cut out, so that a byte-pair tokenizer keeps their letters apart and can learn to spell.
    """
    texts: list[str] = []
    for tag in DRAWING_TAGS:
        rng = np.random.default_rng(0)
        texts += [concept.wording(rng) for concept in seen_concepts(tag) for _ in range(4)]
    rng = np.random.default_rng(0)
    for ask in KINDS.values():
        for _ in range(300):
            question = ask(rng)
            texts += [question.prompt, question.answer]
    for text in texts:
        yield from (piece for piece in re.split(r"[A-Z]+", text) if piece.strip())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dina.recipes.scenes.build", description=__doc__)
    parser.add_argument(
        "--sft-out", type=Path, metavar="DIR", help="also write SFT data into this empty folder"
    )
    parser.add_argument("--count", type=int, default=60000, help="rows of SFT data (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the SFT data (default: %(default)s)")
    parser.add_argument(
        "--mixture", choices=MIXTURES, default="plain", help="of its captions (default: %(default)s)"
    )
    args: Any = parser.parse_args(argv)
    write_prompts()
    print(f"prompt files: {PROMPTS}")
    if args.sft_out:
        write_sft(args.sft_out, args.count, args.seed, args.mixture)
        print(f"{args.count} rows: {args.sft_out}")


if __name__ == "__main__":
    try:
        main()
    except DinaError as error:
        raise SystemExit(f"error: {error}") from None
