"""Configuration of a DiNA model: any causal backbone, plus what makes it read and write image codes."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig


@strict
class DinaConfig(PreTrainedConfig):
    """Field names follow LongCat-Next's config where one exists (docs/format.md).

    The rows of ``embed_tokens`` are: text vocabulary, multimodal special tokens, (room for other code
    families), then from ``visual_offset`` on the codebooks of all levels, one after the other. ``lm_head``
    has the first ``text_vocab_plus_multimodal_special_token_size`` rows alone: codes are never text.
    """

    model_type = "dina"
    sub_configs = {"text_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    text_vocab_size: int = 512
    text_vocab_plus_multimodal_special_token_size: int = 544
    visual_offset: int = 544
    codebook_sizes: list[int] | tuple[int, ...] = (128, 128, 128, 128)
    visual_embedding_layer_intermediate_size: int = 512
    visual_embedding_layer_hidden_act: str = "silu"
    visual_embedding_layer_eps: float = 1e-5
    image_head_transformer_layers: int = 2
    image_head_transformer_dims: int = 256
    image_head_transformer_ffn_scale: int = 16
    image_head_head_dim: int = 128
    image_head_eps: float = 1e-6
    image_head_unused_bias: bool = False
    image_start_token_id: int = 512
    image_end_token_id: int = 513
    image_pad_token_id: int = 514
    image_newline_token_id: int = 515
    image_size_start_token_id: int = 516
    image_size_end_token_id: int = 517
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = 3
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = CONFIG_MAPPING["qwen2"](vocab_size=self.total_rows)
        elif isinstance(self.text_config, dict):
            fields = dict(self.text_config)
            self.text_config = CONFIG_MAPPING[fields.pop("model_type", "qwen2")](**fields)
        self.codebook_sizes = list(self.codebook_sizes)
        super().__post_init__(**kwargs)
        self._check_rows()

    def _check_rows(self) -> None:
        assert isinstance(self.text_config, PreTrainedConfig)
        if self.text_config.vocab_size < self.total_rows:
            raise ValueError(
                f"text_config.vocab_size is {self.text_config.vocab_size}, but the codebooks end at row "
                f"{self.total_rows} (visual_offset {self.visual_offset} + sizes {self.codebook_sizes})"
            )
        if self.visual_offset < self.text_vocab_plus_multimodal_special_token_size:
            raise ValueError(
                f"visual_offset {self.visual_offset} lies inside the rows of lm_head "
                f"({self.text_vocab_plus_multimodal_special_token_size})"
            )

    @property
    def total_rows(self) -> int:
        """Rows of ``embed_tokens`` in use."""
        return self.visual_offset + sum(self.codebook_sizes)

    @property
    def levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def forced_token_ids(self) -> list[int]:
        """Tokens that the layout sets and the policy never samples."""
        return [self.image_pad_token_id, self.image_newline_token_id, self.image_end_token_id]
