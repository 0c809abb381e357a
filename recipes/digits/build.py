"""Writes the digits' data: ``python -m dina.recipes.digits.build [--out data/digits]``.

The 1797 handwritten digits that come with scikit-learn, in three parts that share no picture: a picture folder with
``metadata.jsonl`` for the tokenizer and supervised training, and two classifiers, each trained on a part of its own:
``reader.npz`` for the reward, ``judge.npz`` for the evaluation. ``prompts.jsonl`` and ``test.jsonl`` ask for digits in
different words.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dina.errors import DinaError
from dina.recipes.digits.reads_digit import features

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = (
    "a handwritten {}",
    "the digit {}",
    "write the number {}",
    "{}",
    "a {} in black ink",
    "please draw a {}",
    "one single {}",
    "the number {}, written by hand",
)
PIXELS = 32
GRID = [4, 4]
"""Rows and columns of a picture in visual tokens of 8x8 pixels."""

Row = dict[str, Any]


def parts(count: int) -> list[np.ndarray]:
    """Numbers of the digits to learn to draw (half of them), of the reader's and of the judge's (a quarter each)."""
    return np.split(np.random.default_rng(0).permutation(count), [count // 2, 3 * count // 4])


def picture(digit: np.ndarray) -> Image.Image:
    """A digit ``[8, 8]`` of 0 (paper) to 16 (ink), enlarged to 32x32 pixels, black on white."""
    grey = np.round(255 * (1 - digit / 16)).astype(np.uint8)
    return Image.fromarray(grey).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).convert("RGB")


def wordings(digit: int) -> list[str]:
    """All captions of a digit: every phrase with its word and its figure."""
    return [phrase.format(name) for phrase in PHRASES for name in (NUMBERS[digit], digit)]


def prompt_rows(test: bool) -> list[Row]:
    """Every other wording of every digit; the test prompts are those that training leaves out."""
    return [
        {"id": f"{NUMBERS[digit]}-{i}", "prompt": text, "tag": NUMBERS[digit], "digit": digit, "grid": GRID}
        for digit in range(10)
        for i, text in enumerate(wordings(digit))
        # The phrases alternate between word and figure, so both halves hold both.
        if (i // 2 + i) % 2 == test
    ]


def train_classifier(pictures: Sequence[Image.Image], digits: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Weights of a network with one hidden layer."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((64,), alpha=0.1, max_iter=1000, random_state=seed)
    model.fit(np.stack([features(image) for image in pictures]), digits)
    (hidden, output), (hidden_bias, output_bias) = model.coefs_, model.intercepts_
    return {"hidden": hidden, "hidden_bias": hidden_bias, "output": output, "output_bias": output_bias}


def build(folder: Path) -> dict[str, Any]:
    """Writes everything into ``folder`` and returns figures about it.

    Raises:
        DinaError: scikit-learn is not installed, or the folder holds pictures already.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DinaError('the digits come with scikit-learn: pip install "dina-rl[digits]"') from None
    train = folder / "train"
    if train.exists():
        raise DinaError(f"{train} is there already; name another folder with --out")
    train.mkdir(parents=True)
    data = load_digits()
    mine, reader, judge = parts(len(data.target))
    pictures = [picture(digit) for digit in data.images]
    _write_pictures(train, [pictures[i] for i in mine], data.target[mine])
    _write_jsonl(folder / "prompts.jsonl", prompt_rows(test=False))
    _write_jsonl(folder / "test.jsonl", prompt_rows(test=True))
    for name, part in (("reader", reader), ("judge", judge)):
        weights = train_classifier([pictures[i] for i in part], data.target[part], seed=0)
        np.savez(folder / f"{name}.npz", allow_pickle=False, **weights)
    return {"pictures": len(mine), "reader's pictures": len(reader), "judge's pictures": len(judge)}


def _write_pictures(folder: Path, pictures: Sequence[Image.Image], digits: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for number, (image, digit) in enumerate(zip(pictures, digits.tolist(), strict=True)):
        name = f"{number:04d}.png"
        image.save(folder / name)
        captions = wordings(digit)
        rows.append({"file_name": name, "prompt": captions[int(rng.integers(len(captions)))]})
    _write_jsonl(folder / "metadata.jsonl", rows)


def _write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dina.recipes.digits.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/digits"), help="default: %(default)s")
    args = parser.parse_args(argv)
    figures = build(args.out)
    print(f"{args.out}: " + ", ".join(f"{value} {name}" for name, value in figures.items()))


if __name__ == "__main__":
    try:
        main()
    except DinaError as error:
        raise SystemExit(f"error: {error}") from None
