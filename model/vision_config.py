"""Configuration of the visual tokenizer: encoder, bridge, residual quantiser and pixel decoder."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class DinaQuantizerConfig(PreTrainedConfig):
    """Residual quantiser, LongCat-Next's ``vq_config`` (docs/format.md).

    ``smoothing`` is the Laplace constant of the EMA cluster sizes; a code whose smoothed use falls below
    ``restart_threshold`` vectors per batch is restarted from the batch.
    """

    model_type = "dina_vq"
    base_config_key = "vq_config"

    quantizer_type: str = "rq"
    depth: int = 4
    codebook_size: int = 128
    codebook_sizes: list[int] | tuple[int, ...] | None = None
    codebook_dim: int = 32
    in_channels: int = 128
    quant_conv: bool = True
    shared_codebook: bool = False
    layer_norm_eps: float = 1e-5
    decay: float = 0.99
    smoothing: float = 1e-5
    restart_threshold: float = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        self.codebook_sizes = list(self.codebook_sizes or [self.codebook_size] * self.depth)
        super().__post_init__(**kwargs)
        if len(self.codebook_sizes) != self.depth:
            raise ValueError(f"codebook_sizes {self.codebook_sizes} must name {self.depth} levels (depth)")
        if self.shared_codebook and len(set(self.codebook_sizes)) > 1:
            raise ValueError("a shared codebook needs equal codebook_sizes")
        if not self.quant_conv and self.in_channels != self.codebook_dim:
            raise ValueError("without quant_conv, in_channels must equal codebook_dim")

    @property
    def sizes(self) -> list[int]:
        """Codebook size of every level."""
        return list(self.codebook_sizes or ())


@strict
class DinaPixelDecoderConfig(PreTrainedConfig):
    """ViT from code vectors to pixels (docs/format.md).

    ``rope_positions``: ``merge_block`` gives every patch its own position. ``raster`` is the reference's
    quirk: positions run in raster order while patches run in merge-block order.
    ``attention_scale``: ``once`` is 1/sqrt(head_dim); ``twice`` applies it two times, as the released
    weights are run.
    """

    model_type = "dina_pixel_decoder"
    base_config_key = "visual_decoder_config"

    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 128
    layer_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_positions: str = "merge_block"
    attention_scale: str = "once"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.rope_positions not in ("merge_block", "raster"):
            raise ValueError(f"rope_positions must be merge_block or raster, not {self.rope_positions!r}")
        if self.attention_scale not in ("once", "twice"):
            raise ValueError(f"attention_scale must be once or twice, not {self.attention_scale!r}")
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError("pixel decoder: the head width must be a multiple of 4 for 2-D RoPE")


@strict
class DinaVisionConfig(PreTrainedConfig):
    """The whole tokenizer; names follow LongCat-Next's ``visual_config`` (Qwen2.5-VL's vision config).

    One token covers ``patch_size * spatial_merge_size`` pixels each way. ``window_size`` is the side of an
    attention window in pixels (0: every block sees the whole picture); blocks in ``fullatt_block_indexes``
    always see the whole picture. A window of one token makes the encoder patch-local: the code of a token
    depends on its own pixels alone.
    """

    model_type = "dina_vision"
    sub_configs = {"vq_config": DinaQuantizerConfig, "visual_decoder_config": DinaPixelDecoderConfig}

    encoder_type: str = "dina_vit"
    hidden_size: int = 64
    depth: int = 2
    num_heads: int = 2
    intermediate_size: int = 128
    hidden_act: str = "silu"
    in_channels: int = 3
    patch_size: int = 4
    temporal_patch_size: int = 1
    spatial_merge_size: int = 2
    window_size: int = 0
    fullatt_block_indexes: list[int] | tuple[int, ...] = ()
    out_hidden_size: int = 128
    rms_norm_eps: float = 1e-6
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    vq_config: dict | PreTrainedConfig | None = None
    visual_decoder_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vq_config, DinaQuantizerConfig):
            fields = {"in_channels": self.out_hidden_size, **_fields(self.vq_config)}
            self.vq_config = DinaQuantizerConfig(**fields)
        if not isinstance(self.visual_decoder_config, DinaPixelDecoderConfig):
            self.visual_decoder_config = DinaPixelDecoderConfig(**_fields(self.visual_decoder_config))
        super().__post_init__(**kwargs)
        if self.quantizer.in_channels != self.out_hidden_size:
            raise ValueError(
                f"vq_config.in_channels {self.quantizer.in_channels} must equal out_hidden_size "
                f"{self.out_hidden_size}"
            )
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError("vision encoder: the head width must be a multiple of 4 for 2-D RoPE")
        if self.window_size % self.pixels_per_token:
            raise ValueError(
                f"window_size {self.window_size} must be a multiple of the {self.pixels_per_token} pixels of a token"
            )

    @property
    def quantizer(self) -> DinaQuantizerConfig:
        assert isinstance(self.vq_config, DinaQuantizerConfig)
        return self.vq_config

    @property
    def decoder(self) -> DinaPixelDecoderConfig:
        assert isinstance(self.visual_decoder_config, DinaPixelDecoderConfig)
        return self.visual_decoder_config

    @property
    def pixels_per_token(self) -> int:
        """Side of one token in pixels."""
        return self.patch_size * self.spatial_merge_size

    @property
    def patch_values(self) -> int:
        """Numbers in one flattened patch (channels, frames, rows, columns)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


def _fields(config: dict | PreTrainedConfig | None) -> dict[str, Any]:
    return {key: value for key, value in dict(config or {}).items() if key != "model_type"}
