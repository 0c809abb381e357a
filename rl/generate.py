"""Draws pictures and answers questions with a checkpoint, for ``dina generate``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dina.errors import DinaError
from dina.eval.evaluate import open_torch_engine
from dina.model.sampling import SamplingParams
from dina.rl.environment import pick_device
from dina.rollout.protocol import Prompt, Request, Sample, derive_seed


def draw_pictures(
    checkpoint: Path,
    text: str,
    grid: tuple[int, int],
    out: Path,
    *,
    n: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    guidance_scale: float = 1.0,
    device: str = "auto",
) -> list[Path]:
    """Draws ``n`` pictures of ``text`` and writes them to ``out/0.png``, ``out/1.png``, …

    Args:
        grid: (rows, columns) in visual tokens.

    Raises:
        DinaError: the checkpoint is unusable, the prompt too long, or ``out`` cannot be written.
    """
    sampling = SamplingParams(temperature=temperature, guidance_scale=guidance_scale)
    samples = _sample(checkpoint, Prompt("prompt", text, "t2i", grid), n, seed, sampling, device)
    paths = []
    for index, sample in enumerate(samples):
        assert sample.image is not None
        path = out / f"{index}.png"
        try:
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.image).save(path)
        except OSError as error:
            raise DinaError(f"{path} cannot be written: {error.strerror}") from error
        paths.append(path)
    return paths


def answer_question(
    checkpoint: Path,
    question: str,
    image: Path,
    *,
    n: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    device: str = "auto",
) -> list[str]:
    """``n`` answers to ``question`` about the picture in the file ``image``.

    Raises:
        DinaError: the checkpoint or the picture is unusable, or the question too long.
    """
    try:
        pixels = np.array(Image.open(image).convert("RGB"))
    except (OSError, ValueError) as error:
        raise DinaError(f"The picture {image} cannot be read: {error}") from None
    prompt = Prompt("prompt", question, "vqa", image=pixels)
    samples = _sample(checkpoint, prompt, n, seed, SamplingParams(temperature=temperature), device)
    return [sample.text or "" for sample in samples]


def _sample(
    checkpoint: Path, prompt: Prompt, n: int, seed: int, sampling: SamplingParams, device: str
) -> list[Sample]:
    engine = open_torch_engine(checkpoint, device=str(pick_device(device)))
    try:
        requests = [Request(prompt, derive_seed(seed, index), index=index) for index in range(n)]
        return sorted(engine.generate(requests, sampling), key=lambda sample: sample.request.index)
    finally:
        engine.close()
