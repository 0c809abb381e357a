"""How well the engines read: ``python -m dina.rewards.ocr_engines.measure [--engine NAME] [--font LANGUAGE=FILE]``.

Writes known texts in black on the smallest white square of 64, 128 or 256 pixels that holds them, has the engines read
them back, and prints the mean similarity that the reward ``ocr`` would see, by language and font size.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dina.errors import DinaError
from dina.rewards.ocr import OCRReward

WORDS = {
    "English": "OPEN Exit coffee Library Happy sunday Welcome market PIZZA Garden window QUICK",
    "digits": "7 42 365 1984 2026 90210 31415 271828 1000000 112 88 4096",
    "German": "Straße Müller Grüße Bäcker Öffnung süß Käse Übung Mädchen größer Frühstück Äpfel",
    "French": "Café Élysée garçon crème hôtel forêt naïve été À Noël déjà où",
    "Chinese": "你好 中国 出口 咖啡 图书馆 今天 生日快乐 火车站 安静 北京 天气 欢迎光临",
}
SIZES = (8, 10, 12, 16, 24)
_ASCII = ("English", "digits")
_SIDES = (64, 128, 256)
_MARGIN = 4


def written(text: str, size: int, font: str | None = None) -> np.ndarray:
    """``text`` in ``size`` pixels, in the middle of a white square, ``[S, S, 3]`` uint8.

    Args:
        font: a TrueType file; Pillow's own face, which has the letters of ASCII, by default.

    Raises:
        DinaError: it is wider than the largest square, or the font cannot be read.
    """
    try:
        face = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
    except OSError as error:
        raise DinaError(f"the font {font} cannot be read: {error}") from None
    left, top, right, bottom = face.getbbox(text)
    needed = max(right - left, bottom - top) + 2 * _MARGIN
    side = next((side for side in _SIDES if side >= needed), None)
    if side is None:
        raise DinaError(
            f"{text!r} in {size} pixels needs {needed:g} of them, and the largest square has {_SIDES[-1]}"
        )
    image = Image.new("RGB", (side, side), "white")
    origin = ((side - right + left) / 2 - left, (side - bottom + top) / 2 - top)
    ImageDraw.Draw(image).text(origin, text, "black", face)
    return np.array(image)


def similarities(reward: OCRReward, texts: Sequence[str], size: int, font: str | None) -> list[float]:
    """The part ``similarity`` of each text."""
    return [reward.compare(reward.read(written(text, size, font)), [text]).similarity for text in texts]


def measure(engine: str, fonts: Mapping[str, str]) -> list[str]:
    """The table's lines of one engine: a language each, sizes in columns, and processor time per picture."""
    reward = OCRReward(engine=engine)
    reward.read(written("warm", 16))
    lines = []
    for language in [name for name in WORDS if name in fonts or name in _ASCII]:
        texts = WORDS[language].split()
        begun = time.process_time()
        means = [float(np.mean(similarities(reward, texts, size, fonts.get(language)))) for size in SIZES]
        each = 1000 * (time.process_time() - begun) / (len(SIZES) * len(texts))
        lines.append(
            f"| {engine} | {language} | " + " | ".join(f"{mean:.2f}" for mean in means) + f" | {each:.0f} |"
        )
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dina.rewards.ocr_engines.measure", description=__doc__)
    parser.add_argument("--engine", action="append", help="repeat it for more; by default rapidocr")
    parser.add_argument(
        "--font",
        action="append",
        default=[],
        metavar="LANGUAGE=FILE",
        help="a TrueType file; languages beyond ASCII are read where they have one",
    )
    args = parser.parse_args(argv)
    fonts = dict(entry.partition("=")[::2] for entry in args.font)
    if unknown := fonts.keys() - WORDS.keys():
        raise DinaError(f"--font {min(unknown)}: the languages are {', '.join(WORDS)}")
    print("| engine | language | " + " | ".join(f"{size} px" for size in SIZES) + " | ms |")
    print("|---" * (3 + len(SIZES)) + "|")
    for engine in args.engine or ["rapidocr"]:
        for line in measure(engine, fonts):
            print(line)
            sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except DinaError as error:
        raise SystemExit(f"error: {error}") from None
