"""What classifiers of other kinds read in a comparison's pictures: ``python -m dina.recipes.digits.opinions FOLDER``.

A policy can learn to please the kind of classifier that rewards it. These are three other kinds, fitted to the judge's
digits; beside them, how far the pictures are from the nearest real ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from dina.errors import DinaError
from dina.eval.compare import Comparison
from dina.eval.result import BenchmarkResult
from dina.recipes.digits.build import NUMBERS, parts, picture
from dina.recipes.digits.reads_digit import features


def opinions(comparison: Comparison) -> Iterator[str]:
    """A line per classifier, and one on distances."""
    data = load_digits()
    mine, _, judge = parts(len(data.target))
    ink = np.stack([features(picture(digit)) for digit in data.images])
    drawn = [(_ink(result), _wanted(result)) for result in (comparison.before, comparison.after)]
    neighbours = KNeighborsClassifier(5)
    kinds = {
        "nearest neighbours": neighbours,
        "support vectors": SVC(C=10),
        "random forest": RandomForestClassifier(300, random_state=0),
    }
    for name, classifier in kinds.items():
        classifier.fit(ink[judge], data.target[judge])
        shares = [np.mean(classifier.predict(pictures) == wanted) for pictures, wanted in drawn]
        real = np.mean(classifier.predict(ink[mine]) == data.target[mine])
        yield f"{name:<20} before {shares[0]:.1%}  after {shares[1]:.1%}  real digits {real:.1%}"
    far = [neighbours.kneighbors(pictures)[0].mean() for pictures in (drawn[0][0], drawn[1][0], ink[mine])]
    yield f"{'distance':<20} before {far[0]:.2f}   after {far[1]:.2f}   real digits {far[2]:.2f}"


def _ink(result: BenchmarkResult) -> np.ndarray:
    images = [row.image for row in result.rows if row.image is not None]
    if len(images) < len(result.rows):
        raise DinaError(f"pictures of {result.name} are gone; compare again with --out")
    return np.stack([features(Image.fromarray(image)) for image in images])


def _wanted(result: BenchmarkResult) -> np.ndarray:
    return np.array([NUMBERS.index(row.tag) for row in result.rows])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dina.recipes.digits.opinions", description=__doc__)
    parser.add_argument("folder", type=Path, help="what `dina compare` wrote")
    for line in opinions(Comparison.load(parser.parse_args(argv).folder)):
        print(line)


if __name__ == "__main__":
    try:
        main()
    except DinaError as error:
        raise SystemExit(f"error: {error}") from None
