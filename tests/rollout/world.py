"""A checkpoint that vLLM's CPU attention accepts (head width 32), and requests of every kind for it."""

from __future__ import annotations

import copy

import torch
from transformers import CONFIG_MAPPING

from dina.model.checkpoint import Checkpoint
from dina.model.config import DinaConfig
from dina.model.generation import Generation, GenerationRequest, generate
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from tests.model.tiny import CODEBOOKS, drawing_prompt, picture_prompt, text_prompt
from tests.tiny_checkpoint import tiny_checkpoint


def world_checkpoint(backbone: str = "qwen2", tied: bool = False, seed: int = 0) -> Checkpoint:
    checkpoint = tiny_checkpoint(seed)
    config = copy.deepcopy(checkpoint.model.config)
    config.tie_word_embeddings = tied
    config.text_config = CONFIG_MAPPING[backbone](
        vocab_size=config.total_rows,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
    )
    torch.manual_seed(seed)
    model = DinaForConditionalGeneration(config).eval()
    with torch.no_grad():  # larger weights, so that distributions are far from uniform
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(20 if "visual_head" in name else 12)
        # Answers should now and then start a picture by themselves, and end.
        rows = model.get_input_embeddings().weight if model.lm_head is None else model.lm_head.weight
        rows[[config.image_start_token_id, config.eos_token_id]] *= 3
    return Checkpoint(model, checkpoint.processor, checkpoint.visual_tokenizer)


def mixed_requests(config: DinaConfig, count: int = 64) -> list[GenerationRequest]:
    """Drawings, text, questions about pictures, and text that may draw in between, in turn."""
    requests = []
    for i in range(count):
        seed, length = 1000 + i, 3 + (7 * i) % 40
        if i % 4 == 0:
            prompt, grid = drawing_prompt(config, length, seed=i), (1 + i % 5, 2 + i % 4)
        elif i % 4 == 1:
            prompt, grid = text_prompt(length, seed=i), None
        elif i % 4 == 2:
            prompt, grid = picture_prompt(config, (3, 4 + i % 3), length, seed=i), None
        else:
            prompt, grid = text_prompt(length, seed=i), (2, 2)
        requests.append(GenerationRequest(prompt, seed, grid))
    return requests


def question(config: DinaConfig, residuals: int, seed: int = 5) -> GenerationRequest:
    """A question about a picture whose level-0 codes do not depend on ``residuals``."""
    prompt = picture_prompt(config, (5, 6), 6, seed=1)
    generator = torch.Generator().manual_seed(residuals)
    drawn = prompt.codes[0, :, 0] >= 0
    for level in range(1, len(CODEBOOKS)):
        count = int(drawn.sum())
        prompt.codes[0, drawn, level] = torch.randint(0, CODEBOOKS[level], (count,), generator=generator)
    return GenerationRequest(prompt, seed)


def by_torch(
    model: DinaForConditionalGeneration, requests: list[GenerationRequest], sampling: SamplingParams
) -> list[Generation]:
    return sorted(generate(model, requests, sampling), key=lambda g: g.index)


def differences(
    model: DinaForConditionalGeneration, results: list[Generation], sampling: SamplingParams
) -> tuple[list[float], list[float]]:
    """Per channel, the largest difference of log-probability and of entropy to teacher forcing."""
    stream = TokenStream.collate([r.stream for r in results], pad_id=3)
    with torch.no_grad():
        logps, entropies = model.log_probs_and_entropy(stream, sampling)
    worst: tuple[list[float], list[float]] = ([], [])
    for found, wanted, out in (("logps", logps, worst[0]), ("entropies", entropies, worst[1])):
        for channel in range(stream.actions.shape[2]):
            assert stream.actions[..., channel].any()
            rows = [
                (getattr(r, found)[:, channel] - wanted[i, : r.stream.length, channel]).abs().max()
                for i, r in enumerate(results)
            ]
            out.append(float(torch.stack(rows).max()))
    return worst


def same_sample(a: Generation, b: Generation) -> bool:
    return (
        torch.equal(a.stream.text_ids, b.stream.text_ids)
        and torch.equal(a.stream.codes, b.stream.codes)
        and torch.equal(a.stream.actions, b.stream.actions)
        and a.finish_reason == b.finish_reason
    )
