"""Rows that ask the same about the same picture: found by perceptual hash, colours and prompt."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from dina.rewards.texts import normalise
from dina.rollout.protocol import Prompt

_CELLS = 16


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of a row.

    Attributes:
        prompt: without case and extra white space.
        answer: the accepted answers, alike; empty where there is none.
        image_hash: pHash of the picture in the prompt as 16 hexadecimal digits; empty without one.
        colors: mean colours of 16×16 cells of that picture, RGB bytes in base64.
    """

    prompt: str
    answer: str
    image_hash: str = ""
    colors: str = ""

    @classmethod
    def of(cls, prompt: Prompt) -> Fingerprint:
        text, answer = normalise(prompt.text, ignore_space=False), _answers(prompt.columns.get("answer"))
        if prompt.image is None:
            return cls(text, answer)
        picture = Image.fromarray(prompt.image)
        cells = picture.resize((_CELLS, _CELLS), Image.Resampling.BOX).tobytes()
        return cls(text, answer, str(imagehash.phash(picture)), base64.b64encode(cells).decode())


@dataclass(frozen=True)
class Copies:
    """Which rows repeat an earlier one.

    Attributes:
        original: for every row the first row that it repeats, ``None`` if it repeats none.
        disputed: rows with the prompt and the picture of an earlier one, but another answer. They are no copies: the
            pictures may differ in a detail that no small hash sees, and of two labels one is wrong, which
            rollouts find out.
    """

    original: list[int | None]
    disputed: list[int]


def find_copies(
    rows: Sequence[Fingerprint], image_distance: int | None = 16, color_tolerance: int = 24
) -> Copies:
    """Compares every row with the earlier ones of the same prompt.

    Args:
        image_distance: bits in which two pHashes of one picture may differ; ``None`` finds no copies. Unlike pictures
            differ in some 32. In flat drawings many coefficients lie near the threshold of a bit, and JPEG moved up
            to 13 bits.
        color_tolerance: largest difference (of 255) of two cells' colours. pHash looks at grey low frequencies
            alone, so a red and a blue disc at one place have the same.
    """
    original: list[int | None] = [None] * len(rows)
    disputed: list[int] = []
    groups: dict[tuple[str, bool], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((row.prompt, bool(row.image_hash)), []).append(number)
    for (_, pictured), members in groups.items() if image_distance is not None else ():
        assert image_distance is not None
        alike = _Pictures([rows[i] for i in members], image_distance, color_tolerance) if pictured else None
        for place, number in enumerate(members):
            earlier = list(range(place)) if alike is None else alike.before(place)
            firsts = [members[i] for i in earlier if original[members[i]] is None]
            same = [i for i in firsts if rows[i].answer == rows[number].answer]
            if same:
                original[number] = same[0]
            elif firsts:
                disputed.append(number)
    return Copies(original, disputed)


class _Pictures:
    """The pictures of rows with one prompt, as arrays."""

    def __init__(self, rows: Sequence[Fingerprint], distance: int, tolerance: int) -> None:
        self.distance, self.tolerance = distance, tolerance
        self.hashes = np.array([int(row.image_hash, 16) for row in rows], dtype=np.uint64)
        cells = [np.frombuffer(base64.b64decode(row.colors), np.uint8) for row in rows]
        self.colors = np.stack(cells).astype(np.int16)

    def before(self, place: int) -> list[int]:
        """Places of the earlier pictures that are like the one at ``place``."""
        bits = np.bitwise_count(self.hashes[:place] ^ self.hashes[place])
        near = np.flatnonzero(bits <= self.distance)
        gaps = np.abs(self.colors[near] - self.colors[place]).max(axis=1, initial=0)
        return near[gaps <= self.tolerance].tolist()


def _answers(answer: Any) -> str:
    if answer is None:
        return ""
    accepted = answer if isinstance(answer, list | tuple) else [answer]
    return "\n".join(sorted(normalise(str(entry), ignore_space=False) for entry in accepted))
