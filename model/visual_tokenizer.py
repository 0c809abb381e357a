"""The visual tokenizer dNaViT: pictures to residual codes and back, at native resolution (paper §2.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from dina.errors import DinaError
from dina.model.packing import Grid, patchify
from dina.model.pixel_decoder import PixelDecoder
from dina.model.quantizer import Quantized, VisualQuantizer
from dina.model.vision_config import DinaVisionConfig
from dina.model.vision_encoder import VisualBridge, build_encoder

_TOKENS_PER_CALL = 4096  # bounds the memory of one packed sequence


class VisualBridgeModel(nn.Module):
    """Bridge and quantiser, under the names of the public checkpoint."""

    def __init__(self, config: DinaVisionConfig) -> None:
        super().__init__()
        self.bridge = VisualBridge(config)
        self.quantizer = VisualQuantizer(config.quantizer)


class DinaVisualTokenizer(PreTrainedModel):
    """``encode`` pictures to codes ``[h, w, L]`` and ``decode`` them, any sizes in one call.

    Parameter names: ``visual_model.*``, ``visual_bridge_model.{bridge,quantizer}.*`` and
    ``image_decoder.*`` (docs/format.md). Loads in float32 whatever precision the file has, because the residual
    quantiser amplifies small differences; pass ``dtype`` to change that. Codebooks are always float32.
    """

    config_class = DinaVisionConfig
    base_model_prefix = "visual_tokenizer"
    main_input_name = "images"
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["quantize"]

    def __init__(self, config: DinaVisionConfig) -> None:
        super().__init__(config)
        self.visual_model = build_encoder(config)
        self.visual_bridge_model = VisualBridgeModel(config)
        self.image_decoder = PixelDecoder(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> DinaVisualTokenizer:
        kwargs.setdefault("dtype", torch.float32)
        return super().from_pretrained(*args, **kwargs)

    def save_in(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Saves with all weights but the codebooks in ``dtype``; the model itself is left as it is."""
        small = copy.deepcopy(self)
        for part in (small.visual_model, small.visual_bridge_model.bridge, small.image_decoder):
            part.to(dtype)
        small.quantizer.quant_conv.to(dtype)
        small.save_pretrained(folder)

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initialisation; transformers guards what a file has filled."""
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    @property
    def pixels_per_token(self) -> int:
        """Side of one token in pixels."""
        return self.config.pixels_per_token

    @property
    def quantizer(self) -> VisualQuantizer:
        return self.visual_bridge_model.quantizer

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Pictures ``[3, H, W]``, floats in 0..1, to codes ``[h, w, L]`` int64.

        Raises:
            DinaError: a picture has another shape, or sides that the token size does not divide.
        """
        grids = [self.grid_of(image, index) for index, image in enumerate(images)]
        codes: list[Tensor] = []
        for part in _parts(grids):
            result = self.quantize(images[part.start : part.stop], grids[part.start : part.stop])
            pieces = result.codes.split([rows * columns for rows, columns in grids[part.start : part.stop]])
            codes += [piece.unflatten(0, grids[part.start + i]) for i, piece in enumerate(pieces)]
        return codes

    @torch.inference_mode()
    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Codes ``[h, w, L]`` of any grids to pictures ``[3, H, W]``, floats in 0..1.

        Raises:
            DinaError: codes of another shape, or outside their codebook.
        """
        grids = [self._check_codes(code, index) for index, code in enumerate(codes)]
        images: list[Tensor] = []
        for part in _parts(grids):
            chosen = grids[part.start : part.stop]
            flat = torch.cat([code.flatten(0, 1) for code in codes[part.start : part.stop]]).to(self.device)
            patches = self.image_decoder(self.quantizer.lookup(flat), chosen)
            images += [self.denormalise(image) for image in self.image_decoder.fold(patches.float(), chosen)]
        return images

    def features(self, images: Sequence[Tensor], grids: Sequence[Grid]) -> Tensor:
        """Continuous features ``[tokens, out_hidden_size]`` before quantisation, raster order."""
        hidden, order = self.visual_model(self.patches(images), grids)
        return self.visual_bridge_model.bridge(hidden, order)

    def quantize(self, images: Sequence[Tensor], grids: Sequence[Grid]) -> Quantized:
        """Everything the quantiser says about the tokens of the pictures."""
        return self.quantizer(self.features(images, grids))

    def patches(self, images: Sequence[Tensor]) -> Tensor:
        """Normalised patches ``[N, P]`` of all pictures, each in merge-block order."""
        config = self.config
        dtype = next(self.visual_model.parameters()).dtype
        mean, std = self._pixel_statistics()
        normalised = ((image.to(self.device) - mean) / std for image in images)
        return torch.cat(
            [
                patchify(image, config.patch_size, config.spatial_merge_size, config.temporal_patch_size)
                for image in normalised
            ]
        ).to(dtype)

    def denormalise(self, image: Tensor) -> Tensor:
        """Normalised pixels ``[3, H, W]`` to floats in 0..1."""
        mean, std = self._pixel_statistics()
        return (image * std + mean).clamp(0, 1)

    def _pixel_statistics(self) -> tuple[Tensor, Tensor]:
        values = torch.tensor([self.config.image_mean, self.config.image_std], device=self.device)
        mean, std = values[:, :, None, None]
        return mean, std

    def grid_of(self, image: Tensor, index: int = 0) -> Grid:
        """Rows and columns of a picture in tokens."""
        side = self.pixels_per_token
        if image.ndim != 3 or image.shape[0] != self.config.in_channels or not image.is_floating_point():
            raise DinaError(
                f"picture {index}: expected floats of shape [{self.config.in_channels}, height, width], "
                f"got {image.dtype} of shape {list(image.shape)}"
            )
        height, width = image.shape[1:]
        if height % side or width % side or not height or not width:
            raise DinaError(
                f"picture {index} is {width}x{height} pixels; both sides must be multiples of the token size "
                f"{side}. Resize or pad it to {-(-width // side) * side}x{-(-height // side) * side}"
            )
        return height // side, width // side

    def _check_codes(self, codes: Tensor, index: int) -> Grid:
        sizes = self.config.quantizer.sizes
        if codes.ndim != 3 or codes.shape[-1] != len(sizes):
            raise DinaError(
                f"codes {index}: expected shape [rows, columns, {len(sizes)}], got {list(codes.shape)}"
            )
        limit = torch.tensor(sizes, device=codes.device)
        if ((codes < 0) | (codes >= limit)).any():
            raise DinaError(f"codes {index}: every code must lie between 0 and its codebook's size {sizes}")
        return codes.shape[0], codes.shape[1]


def _parts(grids: Sequence[Grid]) -> Iterator[range]:
    """Ranges of pictures whose tokens together stay within the budget (one picture at least)."""
    start, tokens = 0, 0
    for index, (rows, columns) in enumerate(grids):
        if index > start and tokens + rows * columns > _TOKENS_PER_CALL:
            yield range(start, index)
            start, tokens = index, 0
        tokens += rows * columns
    if start < len(grids):
        yield range(start, len(grids))


AutoConfig.register(DinaVisionConfig.model_type, DinaVisionConfig)
AutoModel.register(DinaVisionConfig, DinaVisualTokenizer)
