"""Pictures as PNG files: what the network and the command line carry."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

import numpy as np
from PIL import Image

from dina.errors import DinaError

MAX_PIXELS = 4096 * 4096


def to_base64_png(image: Image.Image | np.ndarray) -> str:
    """A picture as base64 text; speed matters more than size here."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode("ascii")


def from_base64_png(text: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """``[H, W, 3]`` uint8.

    Raises:
        ValueError: not base64, no PNG, cut off, or more than ``max_pixels``, in words for the sender.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the picture is not base64") from None
    return _decode(data, max_pixels, ["PNG"])


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """``[H, W, 3]`` uint8 of a picture file.

    Raises:
        DinaError: it is not there, cannot be read, or is too large.
    """
    try:
        return _decode(path.read_bytes(), max_pixels, None)
    except OSError as error:
        raise DinaError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DinaError(f"{path}: {error}") from None


def _decode(data: bytes, max_pixels: int, formats: list[str] | None) -> np.ndarray:
    wanted = "PNG" if formats else "picture"
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
            # The header says how large it gets; a small file can unpack to gigabytes.
            if width * height <= max_pixels:
                return np.array(_as_rgb(image))
    except Exception as error:  # what Pillow raises for damaged files is not only OSError
        raise ValueError(f"the picture is no {wanted} that can be read ({error})") from None
    raise ValueError(f"the picture is {width}x{height}, more than the {max_pixels} pixels allowed")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey; convert() would cut off at 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
