"""How well the world's readers read: ``python -m dina.recipes.scenes.measure [--tokenizer CHECKPOINT]``.

Prints the share of whole scenes that the detector reads exactly and of words that OCR reads, on pictures as drawn,
blurred and noisy; with a tokenizer, also how often a tokenized and decoded picture is read as its original is.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dina.errors import DinaError
from dina.recipes.scenes.concepts import COMBOS, NOVEL_COMBOS, NOVEL_WORDS, SEEN_COMBOS, WORDS
from dina.recipes.scenes.detector import ShapeDetector
from dina.recipes.scenes.world import Combo, Scene, render, sample_scene, sample_text_scene
from dina.rewards.detection import Detection
from dina.rewards.ocr import OCRReward
from dina.rewards.registry import load_object

_TOKENIZER = "dina.model.visual_tokenizer:DinaVisualTokenizer"
_BATCH = 32
_SHIFT = 3.0
"""Pixels by which an object may move and still be read as the same."""


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of ``sigma`` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def noisy(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Independent Gaussian noise of ``sigma`` levels out of 255."""
    return np.clip(image + rng.normal(0, sigma, image.shape), 0, 255).astype(np.uint8)


def degradations(seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Name to degradation, the first one none."""
    rng = np.random.default_rng(seed)
    return {
        "as drawn": lambda image: image,
        "blur 0.6 px": lambda image: blurred(image, 0.6),
        "blur 1.0 px": lambda image: blurred(image, 1.0),
        "noise 10/255": lambda image: noisy(image, 10, rng),
    }


def read_exactly(scene: Scene, detections: Sequence[Detection]) -> bool:
    """Whether the detections are the scene's shapes and colours, no more and no less."""
    return sorted((d.label, d.color) for d in detections) == sorted(o.combo for o in scene.objects)


def read_alike(a: Sequence[Detection], b: Sequence[Detection]) -> bool:
    """Whether two readings hold the same shapes and colours at about the same places."""
    rest = list(b)
    for one in a:
        for other in rest:
            shift = max(abs(_middle(one, axis) - _middle(other, axis)) for axis in (0, 1))
            if (one.label, one.color) == (other.label, other.color) and shift <= _SHIFT:
                rest.remove(other)
                break
        else:
            return False
    return not rest


def _middle(detection: Detection, axis: int) -> float:
    return (detection.box[axis] + detection.box[axis + 2]) / 2


def scenes(count: int, seed: int, combos: Sequence[Combo] = COMBOS) -> list[Scene]:
    """Random scenes of one to four objects, each drawn from ``combos``."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, combos) for _ in range(count)]


def text_scenes(count: int, seed: int, words: Sequence[str] = WORDS) -> list[Scene]:
    """Scenes with a word each, every word equally often."""
    rng = np.random.default_rng(seed)
    return [sample_text_scene(rng, words[i % len(words)]) for i in range(count)]


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _line(what: str, hits: int, count: int, more: str = "") -> str:
    low, high = interval(hits, count)
    share = f"{100 * hits / count:6.2f} %  [{100 * low:.2f}, {100 * high:.2f}]"
    return f"{what:<44} {share}  n={count}{more}"


def measure_detector(count: int, seed: int) -> Iterator[str]:
    """Whole scenes read exactly, and words taken for shapes."""
    detector = ShapeDetector()
    for name, degrade in degradations(seed).items():
        some = scenes(count, seed)
        hits = sum(read_exactly(scene, detector.detect(degrade(render(scene)))) for scene in some)
        yield _line(f"detector, whole scene exact, {name}", hits, count)
    words = text_scenes(min(count, 500), seed, WORDS + NOVEL_WORDS)
    shapeless = sum({d.label for d in detector.detect(render(scene))} == {"text"} for scene in words)
    yield _line("detector, words read as text and no shape", shapeless, len(words))


def measure_ocr(count: int, seed: int) -> Iterator[str]:
    """Words read exactly, with the mean similarity."""
    reader = OCRReward()
    for name, degrade in degradations(seed).items():
        some = text_scenes(count, seed, WORDS + NOVEL_WORDS)
        values = [
            reader.compare(reader.read(degrade(render(scene))), [scene.text or ""]).similarity
            for scene in some
        ]
        hits = sum(value == 1.0 for value in values)
        yield _line(f"ocr, word exact, {name}", hits, count, f"  similarity {np.mean(values):.4f}")


def load_tokenizer(path: Path) -> Any:
    """The visual tokenizer of a checkpoint folder, or of a tokenizer's own folder."""
    inner = path / "visual_tokenizer"
    folder = inner if inner.is_dir() else path
    if not (folder / "config.json").is_file():
        raise DinaError(f"{path} holds no visual tokenizer: there is no config.json in {folder}")
    return load_object(_TOKENIZER).from_pretrained(folder).eval()


def reconstruct(tokenizer: Any, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures ``[H, W, 3]`` uint8 to codes and back, on the device of ``tokenizer``."""
    import torch

    out: list[np.ndarray] = []
    with torch.inference_mode():
        for at in range(0, len(images), _BATCH):
            batch = [torch.from_numpy(im).permute(2, 0, 1).float() / 255 for im in images[at : at + _BATCH]]
            decoded = tokenizer.decode(tokenizer.encode([im.to(tokenizer.device) for im in batch]))
            out += [(im.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy() for im in decoded]
    return out


def measure_tokenizer(tokenizer: Any, count: int, seed: int, words_count: int = 200) -> Iterator[str]:
    """Reconstructions read as their originals are: shapes seen in training, never seen ones, and words."""
    detector, reader = ShapeDetector(), OCRReward()
    for name, combos in (("seen combinations", SEEN_COMBOS), ("novel combinations", NOVEL_COMBOS)):
        originals = [render(scene) for scene in scenes(count, seed, combos)]
        pairs = zip(originals, reconstruct(tokenizer, originals), strict=True)
        hits = sum(read_alike(detector.detect(a), detector.detect(b)) for a, b in pairs)
        yield _line(f"tokenizer, scene read alike, {name}", hits, count)
    for name, words in (("seen words", WORDS), ("novel words", NOVEL_WORDS)):
        some = text_scenes(words_count, seed, words)
        read = [reader.read(image) for image in reconstruct(tokenizer, [render(s) for s in some])]
        values = [
            reader.compare(lines, [s.text or ""]).similarity for lines, s in zip(read, some, strict=True)
        ]
        hits = sum(value == 1.0 for value in values)
        yield _line(f"tokenizer, word read, {name}", hits, len(some), f"  similarity {np.mean(values):.4f}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dina.recipes.scenes.measure", description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="scenes per line (default: %(default)s)")
    parser.add_argument("--words", type=int, default=300, help="words per line (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="CHECKPOINT", help="measure this tokenizer instead of the readers"
    )
    args = parser.parse_args(argv)
    if args.tokenizer:
        lines = measure_tokenizer(load_tokenizer(args.tokenizer), args.count, args.seed, args.words)
    else:
        lines = chain(measure_detector(args.count, args.seed), measure_ocr(args.words, args.seed))
    for line in lines:
        print(line)
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except DinaError as error:
        raise SystemExit(f"error: {error}") from None
