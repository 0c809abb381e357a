"""What a trained tokenizer is worth: pixel errors, use of the codebooks, pictures beside their copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dina.model.visual_tokenizer import DinaVisualTokenizer

_SHEET_COLUMNS = 8


def measure(tokenizer: DinaVisualTokenizer, images: Sequence[Tensor]) -> dict[str, Any]:
    """Figures on pictures ``[3, H, W]`` in 0..1.

    ``psnr`` in dB over all pixels, ``l1`` in grey levels of 255, ``exact_codes`` the share of tokens whose
    codes come back when the decoded picture is encoded again, and per level the codes in use and the entropy
    in bits.
    """
    codes = tokenizer.encode(images)
    decoded = tokenizer.decode(codes)
    again = torch.cat([code.flatten(0, 1) for code in tokenizer.encode(decoded)])
    flat = torch.cat([code.flatten(0, 1) for code in codes])
    errors = torch.cat([(a - b).flatten() for a, b in zip(images, decoded, strict=True)])
    mse = errors.square().mean().item()
    levels = []
    for column in flat.T:
        share = torch.bincount(column).float() / len(column)
        entropy = torch.special.entr(share).sum().item() / math.log(2)
        levels.append({"codes_used": int((share > 0).sum()), "entropy_bits": round(entropy, 4)})
    return {
        "pictures": len(images),
        "psnr": round(-10 * math.log10(max(mse, 1e-12)), 3),
        "l1": round(255 * errors.abs().mean().item(), 4),
        "exact_codes": round((flat == again).all(1).float().mean().item(), 5),
        "distinct_tokens": len(flat.unique(dim=0)),
        "levels": levels,
    }


def save_contact_sheet(
    tokenizer: DinaVisualTokenizer, images: Sequence[Tensor], path: Path, zoom: int = 2
) -> None:
    """Originals in odd rows, their decoded copies below them."""
    decoded = tokenizer.decode(tokenizer.encode(images))
    height, width = (max(image.shape[axis] for image in images) + 4 for axis in (1, 2))
    rows = math.ceil(len(images) / _SHEET_COLUMNS)
    sheet = torch.ones(3, 2 * rows * height, _SHEET_COLUMNS * width)
    for index, pair in enumerate(zip(images, decoded, strict=True)):
        for below, image in enumerate(pair):
            top = (2 * (index // _SHEET_COLUMNS) + below) * height
            left = index % _SHEET_COLUMNS * width
            sheet[:, top : top + image.shape[1], left : left + image.shape[2]] = image.cpu()
    pixels = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)
