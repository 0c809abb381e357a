"""Planted copies and unanswerable questions among scene questions that are worth training on.

``python -m tests.rl.planted OUT --rows 2000`` looks for enough such questions with the shipped checkpoint, plants
200 copies and 100 unanswerable rows, prepares all of it and says whether exactly the planted ones went.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dina.recipes.scenes.questions import KINDS
from dina.recipes.scenes.world import render, scene_to_json
from dina.rl.prepare.config import PrepareRecipe
from dina.rl.prepare.prepare import prepare
from dina.rl.prepare.report import print_report
from dina.rl.prompt_files import read_rows
from dina.rl.recipe.load import RECIPES

Row = dict[str, Any]
RENDERER = "dina.recipes.scenes.world:render_json"


@dataclass(frozen=True)
class Planted:
    """Files with planted rows, and where these are.

    Attributes:
        files: label -> prompt file or picture folder, in the order in which they are to be read.
        copies, unanswerable: (label, row from 1) of the planted rows.
    """

    files: dict[str, Path]
    copies: set[tuple[str, int]]
    unanswerable: set[tuple[str, int]]


def question_rows(count: int, seed: int) -> list[Row]:
    """Scene questions of all kinds, each with a scene of its own."""
    rng = np.random.default_rng([seed, 77])
    rows, kinds = [], list(KINDS.values())
    for number in range(count):
        question = kinds[number % len(kinds)](rng)
        rows.append(
            {
                "id": f"q{number}",
                "task": "vqa",
                "tag": question.kind,
                "prompt": question.prompt,
                "answer": question.answer,
                "scene": scene_to_json(question.scene),
            }
        )
    return rows


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plant(rows: Sequence[Row], folder: Path, copies: int, unanswerable: int, seed: int = 0) -> Planted:
    """Hides copies and unanswerable rows among ``rows`` (with scenes), in two files and a picture folder.

    A third of the copies are exact, a third have other case and spaces, and a third are JPEG pictures in a folder.
    Unanswerable are rows whose answer is no word that the scenes world knows.
    """
    rng = np.random.default_rng(seed)
    chosen = [rows[i] for i in rng.permutation(len(rows))[: copies + unanswerable]]
    lost = [
        row | {"id": f"lost-{i}", "answer": "zeppelin", "prompt": f"what flies there, seen from spot {i}?"}
        for i, row in enumerate(chosen[copies:])
    ]
    third = copies // 3
    exact = [row | {"id": f"exact-{i}"} for i, row in enumerate(chosen[:third])]
    spaced = [
        row | {"id": f"spaced-{i}", "prompt": f"  {row['prompt'].capitalize().replace(' ', '  ')}"}
        for i, row in enumerate(chosen[third : 2 * third])
    ]
    more = [*exact, *spaced, *lost]
    more = [more[i] for i in rng.permutation(len(more))]
    names = [row["id"].split("-")[0] for row in more]
    photos = folder / "photos"
    _write_photos(photos, chosen[2 * third : copies])
    return Planted(
        {
            "plain": write_jsonl(folder / "plain.jsonl", rows),
            "more": write_jsonl(folder / "more.jsonl", more),
            "photos": photos,
        },
        {("more", n) for n, name in enumerate(names, 1) if name in ("exact", "spaced")}
        | {("photos", n) for n in range(1, copies - 2 * third + 1)},
        {("more", n) for n, name in enumerate(names, 1) if name == "lost"},
    )


def _write_photos(folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows):
        data = io.BytesIO()
        Image.fromarray(picture_of(row)).save(data, "JPEG", quality=90)
        (folder / f"{number:04d}.jpg").write_bytes(data.getvalue())
        lines.append({"file_name": f"{number:04d}.jpg", "problem": row["prompt"], "answer": row["answer"]})
    write_jsonl(folder / "metadata.jsonl", lines)


def picture_of(row: Row) -> np.ndarray:
    from dina.recipes.scenes.world import scene_from_json

    return render(scene_from_json(row["scene"]))


def recipe(planted: Planted, out: Path, **changes: Any) -> PrepareRecipe:
    columns = {"photos": {"prompt": "problem"}}
    return PrepareRecipe.model_validate(
        {
            "output_dir": str(out),
            "model": {"path": str(RECIPES / "scenes" / "checkpoint")},
            "sources": [
                {"path": str(path), "name": label, "columns": columns.get(label, {}), "task": "vqa"}
                for label, path in planted.files.items()
            ],
            "renderer": RENDERER,
            "rollout": {"batch_size": 128, "max_completion_length": 16},
            "rewards": [{"use": "vqa"}],
            "threads": 1,
            **changes,
        }
    )


def worth_training(count: int, folder: Path) -> list[Row]:
    """``count`` scene questions that the shipped checkpoint sometimes gets right, as it says in four rollouts."""
    rows = question_rows(int(1.8 * count) + 40, seed=0)
    files = Planted({"all": write_jsonl(folder / "all.jsonl", rows)}, set(), set())
    prepare(recipe(files, folder / "all", format="jsonl"))
    kept = [row for _, row in read_rows(folder / "all" / "prepared.jsonl")]
    assert len(kept) >= count, f"only {len(kept)} of {len(rows)} questions have signal"
    return [
        {k: v for k, v in row.items() if k not in ("image", "pass_rate", "provenance")}
        for row in kept[:count]
    ]


def dropped_rows(out: Path) -> dict[str, set[tuple[str, int]]]:
    """Why -> (label, row) of the rows that ``dina prepare`` left out."""
    found: dict[str, set[tuple[str, int]]] = {}
    for line in (out / "dropped.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["outcome"], set()).add((row["source"], row["row"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.rl.planted", description=__doc__)
    parser.add_argument("out", type=Path, help="an empty folder")
    parser.add_argument("--rows", type=int, default=2000)
    args = parser.parse_args()
    rows = worth_training(args.rows, args.out / "search")
    planted = plant(rows, args.out / "planted", copies=200, unanswerable=100)
    report = prepare(recipe(planted, args.out / "prepared"))
    print_report(report)
    dropped = dropped_rows(args.out / "prepared")
    exact = dropped == {"duplicate": planted.copies, "all_wrong": planted.unanswerable}
    print(f"exactly the planted rows went: {exact}; {report.count('kept')} of {args.rows} questions are left")


if __name__ == "__main__":
    main()
