from __future__ import annotations

import pytest
import torch
from torch import nn

from dina.errors import DinaError
from dina.model.packing import packed_attention, patch_positions, patchify, unpatchify, window_order
from dina.model.vision_config import DinaVisionConfig
from dina.model.vision_encoder import VisualBridge, build_encoder, register_encoder
from dina.model.visual_tokenizer import DinaVisualTokenizer
from tests.golden import load_golden, relative_error, weights_of


def small_config(**changes: object) -> DinaVisionConfig:
    fields = {"hidden_size": 16, "depth": 2, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 20}
    return DinaVisionConfig(**{**fields, **changes})


def test_golden_bridge_and_window_order() -> None:
    tensors, metadata = load_golden("vision_bridge")
    config = metadata["config"]
    bridge = VisualBridge(
        DinaVisionConfig(num_heads=2, **{k: v for k, v in config.items() if k != "ln_q_eps"})
    )
    bridge.load_state_dict(weights_of(tensors))
    merge = config["spatial_merge_size"]
    grids = tuple((h // merge, w // merge) for _, h, w in tensors["in.grid_thw"].tolist())
    index, lengths = window_order(grids, config["window_size"] // config["patch_size"] // merge)
    assert torch.equal(index, tensors["out.window_index"])
    boundaries = torch.tensor([0, *lengths]).cumsum(0) * merge**2
    assert torch.equal(boundaries, tensors["out.cu_window_seqlens"])
    features = bridge(tensors["in.hidden_window_order"], index)
    assert relative_error(features, tensors["out.features_raster"]) < 1e-5


def test_golden_encoder_bridge_quantiser() -> None:
    tensors, metadata = load_golden("vision_encoder")
    tokenizer = DinaVisualTokenizer(DinaVisionConfig(**metadata["config"])).eval()
    missing, unexpected = tokenizer.load_state_dict(weights_of(tensors), strict=False)
    assert not unexpected
    assert all(name.startswith("image_decoder.") for name in missing)
    grids = [(h // 2, w // 2) for _, h, w in tensors["in.grid_thw"].tolist()]
    hidden, index = tokenizer.visual_model(tensors["in.pixel_values"], grids)
    assert torch.equal(index, tensors["out.window_index"])
    assert relative_error(hidden, tensors["out.hidden_window_order"]) < 1e-5
    features = tokenizer.visual_bridge_model.bridge(hidden, index)
    assert relative_error(features, tensors["out.features_raster"]) < 1e-5
    assert torch.equal(tokenizer.quantizer(features).codes, tensors["out.codes"])


@pytest.mark.parametrize("frames", [1, 2])
def test_patches_fold_back(frames: int) -> None:
    image = torch.rand(3, 24, 40)
    patches = patchify(image, 4, 2, frames)
    assert patches.shape == (60, 3 * frames * 16)
    assert torch.equal(unpatchify(patches, (3, 5), 4, 2, frames), image)


def test_merge_block_positions_name_the_patch() -> None:
    grid = torch.arange(6 * 10).view(1, 6, 10).float()
    order = patchify(grid, 1, 2)[:, 0].long()
    positions = patch_positions((3, 5), 2)
    assert torch.equal(positions[:, 0] * 10 + positions[:, 1], order)


def test_packed_attention_keeps_to_its_segment() -> None:
    lengths = [3, 5, 3, 1]
    q, k, v = torch.randn(3, sum(lengths), 2, 4)
    packed = packed_attention(q, k, v, lengths, 0.5)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", q[part], k[part]) * 0.5
        alone = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[part])
        assert torch.allclose(packed[part], alone, atol=1e-6)
        start += length


@pytest.mark.parametrize(
    "changes", [{}, {"window_size": 16}, {"depth": 0}, {"fullatt_block_indexes": [1], "window_size": 8}]
)
def test_packed_pictures_equal_each_alone(changes: dict) -> None:
    tokenizer = DinaVisualTokenizer(small_config(**changes)).eval()
    images = [torch.rand(3, 24, 40), torch.rand(3, 16, 16), torch.rand(3, 24, 40), torch.rand(3, 8, 32)]
    grids = [tokenizer.grid_of(image) for image in images]
    packed = tokenizer.features(images, grids).split([h * w for h, w in grids])
    for image, grid, together in zip(images, grids, packed, strict=True):
        assert torch.allclose(tokenizer.features([image], [grid]), together, atol=1e-5)


def test_window_of_one_token_is_patch_local() -> None:
    tokenizer = DinaVisualTokenizer(small_config(window_size=8)).eval()
    image = torch.rand(3, 16, 24)
    changed = image.clone()
    changed[:, 8:, 16:] = torch.rand(3, 8, 8)
    before, after = (tokenizer.features([x], [(2, 3)]) for x in (image, changed))
    assert torch.equal(before[:5], after[:5])
    assert not torch.allclose(before[5], after[5])


def test_positions_matter() -> None:
    tokenizer = DinaVisualTokenizer(small_config()).eval()
    image = torch.rand(3, 16, 16)
    flipped = torch.cat([image[:, :, 8:], image[:, :, :8]], -1)
    features = tokenizer.features([image], [(2, 2)])
    assert not torch.allclose(features[0], tokenizer.features([flipped], [(2, 2)])[1], atol=1e-4)


def test_encoders_plug_in_by_name() -> None:
    @register_encoder("only_patches")
    class OnlyPatches(nn.Module):
        def __init__(self, config: DinaVisionConfig) -> None:
            super().__init__()
            self.embed = nn.Linear(config.patch_values, config.hidden_size)

        def forward(self, patches: torch.Tensor, grids: list) -> tuple[torch.Tensor, torch.Tensor]:
            return self.embed(patches), torch.arange(len(patches) // 4)

    tokenizer = DinaVisualTokenizer(small_config(encoder_type="only_patches"))
    assert tokenizer.encode([torch.rand(3, 16, 8)])[0].shape == (2, 1, 4)
    with pytest.raises(DinaError, match="dina_vit"):
        build_encoder(small_config(encoder_type="nothing"))
