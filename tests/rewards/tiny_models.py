"""Reward models with random weights, built from their configurations and saved to a folder.

They say nothing true about a picture; they let the code that loads and runs hub weights be tested without a hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers

CLASSES = {0: "person", 1: "motorbike", 2: "mouse", 3: "tv"}
"""As checkpoints spell them; two of them are spelled otherwise by GenEval."""


def save(folder: Path, model: Any, *processors: Any) -> str:
    model.eval().save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    return str(folder)


def clip(folder: Path) -> str:
    """CLIP on 32x32 pictures with byte-level tokens."""
    torch.manual_seed(0)
    tower = _tower()
    config = transformers.CLIPConfig(
        text_config=tower | _text(),
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    size = {"height": 32, "width": 32}
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    processor = transformers.CLIPProcessor(pictures, clip_tokenizer())
    return save(folder, transformers.CLIPModel(config), processor)


def owlv2(folder: Path) -> str:
    torch.manual_seed(0)
    tower = _tower()
    config = transformers.Owlv2Config(
        text_config=tower | _text(),
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    pictures = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.Owlv2Processor(pictures, clip_tokenizer())
    return save(folder, transformers.Owlv2ForObjectDetection(config), processor)


def rt_detr(folder: Path) -> str:
    torch.manual_seed(0)
    config = transformers.RTDetrV2Config(**_detr())
    return save(folder, transformers.RTDetrV2ForObjectDetection(config), _detr_pictures())


def d_fine(folder: Path) -> str:
    torch.manual_seed(0)
    config = transformers.DFineConfig(**_detr())
    return save(folder, transformers.DFineForObjectDetection(config), _detr_pictures())


def mask2former(folder: Path) -> str:
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=8,
        id2label=CLASSES,
    )
    pictures = transformers.Mask2FormerImageProcessor(size={"height": 64, "width": 64})
    return save(folder, transformers.Mask2FormerForUniversalSegmentation(config), pictures)


def grounding_dino(folder: Path) -> str:
    torch.manual_seed(0)
    # The model knows its special tokens by BERT's ids: 101, 102, 1012 (full stop) and 1029.
    words = {"[PAD]": 0, "[UNK]": 1, "[MASK]": 103, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    words |= {"fire": 200, "hydrant": 201, "dog": 202, "person": 203}
    vocabulary = words | {f"[unused{i}]": i for i in range(1040) if i not in words.values()}
    backbone = transformers.SwinConfig(
        image_size=64,
        window_size=4,
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    text = {"model_type": "bert", "vocab_size": 1040, "hidden_size": 16, "intermediate_size": 16}
    config = transformers.MMGroundingDinoConfig(
        backbone_config=backbone,
        text_config=text | {"num_hidden_layers": 1, "num_attention_heads": 2},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=8,
        max_text_len=32,
    )
    pictures = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor = transformers.GroundingDinoProcessor(pictures, transformers.BertTokenizer(vocab=vocabulary))
    return save(folder, transformers.MMGroundingDinoForObjectDetection(config), processor)


def got_ocr(folder: Path) -> str:
    torch.manual_seed(0)
    config = transformers.GotOcr2Config(
        vision_config={
            "hidden_size": 16,
            "output_channels": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "window_size": 2,
            "global_attn_indexes": [1],
            "mlp_dim": 16,
            "initializer_range": 0.2,
        },
        text_config=_decoder("qwen2"),
        image_token_index=byte_tokenizer().convert_tokens_to_ids("<imgpad>"),
    )
    pictures = transformers.GotOcr2ImageProcessor(size={"height": 64, "width": 64})
    processor = transformers.GotOcr2Processor(pictures, byte_tokenizer())
    return save(folder, transformers.GotOcr2ForConditionalGeneration(config), processor)


def llava(folder: Path) -> str:
    """A vision language model with a chat template; pictures are 32x32, one token per byte of text."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = transformers.LlavaConfig(
        vision_config=_tower() | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
        text_config=_decoder("llama"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    size = {"height": 32, "width": 32}
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    processor = transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}: {% for c in m['content'] %}"
            "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
        ),
    )
    return save(folder, transformers.LlavaForConditionalGeneration(config), processor)


def qwen3_vl(folder: Path) -> str:
    """A vision language model of half a million weights that vLLM serves, with a chat template."""
    torch.manual_seed(0)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    specials += ["<|image_pad|>", "<|video_pad|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *specials])}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=specials[1:], eos_token="<|im_end|>"
    )
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}
    options = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**options),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(**options),
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
            "{% else %}{% for c in m['content'] %}{% if c['type'] in ('image', 'image_url') %}<|vision_start|>"
            "<|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    )
    return save(folder, transformers.Qwen3VLForConditionalGeneration(config), processor)


def byte_tokenizer() -> Any:
    """A token per byte, and the special tokens of the models here."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>", "<image>"]
    vocabulary = {token: i for i, token in enumerate([*letters, *specials])}
    return transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=specials[1:])


def _decoder(kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": 263,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }


def clip_tokenizer() -> Any:
    """A token per byte, and one per byte that ends a word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32)


def _tower() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.2,  # with the usual 0.02 every text would have nearly the same embedding
    }


def _text() -> dict[str, Any]:
    return {
        "vocab_size": 514,
        "max_position_embeddings": 32,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    }


def _detr() -> dict[str, Any]:
    backbone = transformers.RTDetrResNetConfig(
        embeddings_size=10,
        hidden_sizes=[10, 20, 30, 40],
        depths=[1, 1, 2, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    return {
        "backbone_config": backbone,
        "encoder_in_channels": [20, 30, 40],
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_in_channels": [32, 32, 32],
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "decoder_layers": 2,
        "d_model": 32,
        "num_queries": 12,
        "num_denoising": 0,
        "id2label": CLASSES,
    }


def _detr_pictures() -> Any:
    return transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})
