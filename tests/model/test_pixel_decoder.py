from __future__ import annotations

import pytest
import torch

from dina.model.pixel_decoder import PixelDecoder
from dina.model.quantizer import ResidualQuantizer
from dina.model.vision_config import DinaVisionConfig
from tests.golden import load_golden, relative_error, weights_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def golden_config(config: dict, scale: str) -> DinaVisionConfig:
    decoder = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "layer_norm_eps",
    )
    return DinaVisionConfig(
        patch_size=config["patch_size"],
        temporal_patch_size=config["temporal_patch_size"],
        spatial_merge_size=config["spatial_merge_size"],
        vq_config={k: config[k] for k in ("depth", "codebook_sizes", "codebook_dim")},
        visual_decoder_config={
            **{k: config[k] for k in decoder},
            "rope_theta": config["rope_theta"],
            "rope_positions": "raster",
            "attention_scale": scale,
        },
    )


@pytest.mark.parametrize("scale", ["once", "twice"])
def test_golden_pictures(scale: str) -> None:
    tensors, metadata = load_golden("pixel_decoder")
    config = golden_config(metadata["config"], scale)
    decoder = PixelDecoder(config)
    decoder.load_state_dict(weights_of(tensors, ("codebooks",)))
    quantizer = ResidualQuantizer(config.vq_config)
    quantizer.load_state_dict({k: v for k, v in tensors.items() if k.startswith("codebooks")}, strict=False)
    for rows, columns in metadata["grids"]:
        name = f"h{rows}_w{columns}"
        vectors = quantizer.lookup(tensors[f"in.codes.{name}"])
        assert relative_error(vectors, tensors[f"out.quant.{name}"]) < 1e-5
        patches = decoder(vectors, [(rows, columns)])
        image = decoder.fold(patches, [(rows, columns)])[0]
        assert relative_error(image, tensors[f"out.image_scale_{scale}.{name}"]) < 1e-5
        if scale == "once" and f"out.pixel_features_scale_once.{name}" in tensors:
            assert relative_error(patches, tensors[f"out.pixel_features_scale_once.{name}"]) < 1e-5
        if scale == "twice":
            mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
            shown = (image * std + mean).clamp(0, 1)
            assert relative_error(shown, tensors[f"out.image01_scale_twice.{name}"]) < 1e-5


@pytest.mark.parametrize("positions", ["merge_block", "raster"])
def test_packed_pictures_equal_each_alone(positions: str) -> None:
    config = DinaVisionConfig(visual_decoder_config={"rope_positions": positions})
    decoder = PixelDecoder(config)
    grids = [(2, 3), (4, 1), (2, 3), (3, 3)]
    vectors = [torch.randn(h * w, config.vq_config.codebook_dim) for h, w in grids]
    packed = decoder.fold(decoder(torch.cat(vectors), grids), grids)
    for grid, vector, together in zip(grids, vectors, packed, strict=True):
        alone = decoder.fold(decoder(vector, [grid]), [grid])[0]
        assert together.shape == (3, grid[0] * 8, grid[1] * 8)
        assert torch.allclose(alone, together, atol=1e-5)


def test_unknown_switch_is_an_error() -> None:
    with pytest.raises(Exception, match="merge_block"):
        DinaVisionConfig(visual_decoder_config={"rope_positions": "zigzag"})
