"""One update of the learner against TRL's ``GRPOTrainer`` doing the same: texts alone, same backbone, same tokens.

Both pass forward and backward over the batch at once, clip, and take a step of AdamW. Neither generates, scores, nor
computes the old log-probabilities, and TRL's gradient checkpointing is off.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from dina.model.checkpoint import load_checkpoint
from dina.model.config import DinaConfig
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream, pad_rows
from dina.rl.bench.options import Options, Row
from dina.rl.learner.learner import Learner
from dina.rl.recipe.config import TrainConfig
from dina.rollout.bench import large_config, take_turns
from dina.rollout.protocol import Prompt, Request, Sample

GENERATIONS = 8
LEARNING_RATE = 1e-7  # the weights hardly move, so every turn does the same
FIRST_TEXT_ID = 4  # the special tokens stand before


def measure_learner(options: Options) -> list[Row]:
    """One row per model: sampled tokens per second of each, and their ratio."""
    torch.set_num_threads(options.threads)
    source = load_checkpoint(options.checkpoint)
    small, tokenizer = source.model.config, source.processor.tokenizer
    models = {"small": (small, 64), "large": (large_config(small), 16)}
    if options.quick:
        models = {"small": (small, GENERATIONS)}
    rows = []
    for name, (config, count) in models.items():
        torch.manual_seed(0)
        model = DinaForConditionalGeneration(config).eval()
        samples = [*draw_texts(config, count, prompt=32, longest=96)]
        rows.append({"model": name, "sequences": count, **compare(model, samples, tokenizer, options)})
    return rows


def draw_texts(config: DinaConfig, count: int, prompt: int, longest: int) -> Iterator[Sample]:
    """Samples of random text tokens: prompts of ``prompt``, answers of half of ``longest`` up to it."""
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        length = prompt + int(torch.randint(longest // 2, longest + 1, (), generator=generator))
        ids = torch.randint(FIRST_TEXT_ID, config.text_vocab_size, (length,), generator=generator)
        stream = TokenStream.from_prompt(ids.tolist(), torch.full((length, config.levels), -1))
        stream.actions[0, prompt:, 0] = True
        nothing = torch.zeros(length, 1 + config.levels)
        request = Request(Prompt(str(index), "", task="vqa"), index, index // GENERATIONS, index)
        yield Sample(request, stream, nothing, nothing)


def compare(
    model: DinaForConditionalGeneration,
    samples: list[Sample],
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
) -> Row:
    advantages = torch.linspace(-1, 1, len(samples))
    theirs = trl_update(backbone_alone(model), samples, advantages, tokenizer, options)
    ours = own_update(model, samples, advantages)
    norms = {"grad_norm": ours(), "trl_grad_norm": theirs()}
    turns = take_turns({"dina": ours, "trl": theirs}, options.repeats(7))
    count = sum(int(sample.stream.actions.sum()) for sample in samples)
    rate = {name: count / statistics.median(turn.wall) for name, turn in turns.items()}
    work = {name: count / statistics.median(turn.cpu) for name, turn in turns.items()}
    return {
        "actions": count,
        **{name: round(value, 1) for name, value in rate.items()},
        "ratio": round(rate["dina"] / rate["trl"], 3),
        "ratio_cpu": round(work["dina"] / work["trl"], 3),
        **{name: round(value, 5) for name, value in norms.items()},
    }


def own_update(
    model: DinaForConditionalGeneration, samples: list[Sample], advantages: Tensor
) -> Callable[[], float]:
    """The learner's update as a function that returns the gradient's norm."""
    count = len(samples)
    recipe = TrainConfig.model_validate(
        {
            "model": {"path": "unused"},
            "data": {"train": "unused"},
            "rewards": [{"use": "vqa"}],
            "algorithm": {"num_generations": GENERATIONS, "prompts_per_step": count // GENERATIONS},
            "optim": {"learning_rate": LEARNING_RATE, "micro_batch_size": count},
        }
    )
    learner = Learner(model, recipe, SamplingParams())
    batch = learner.compare(samples, advantages.double(), advantages, torch.ones(count, dtype=torch.bool))
    return lambda: learner.update(batch, 1).metrics["grad_norm"]


def backbone_alone(model: DinaForConditionalGeneration) -> Any:
    """The model's backbone and text head as a causal LM without codes."""
    config: Any = model.config.text_config
    rows = model.config.text_vocab_plus_multimodal_special_token_size
    fields = config.to_dict() | {"vocab_size": rows, "tie_word_embeddings": model.lm_head is None}
    plain = AutoModelForCausalLM.from_config(type(config)(**fields))
    weights = {f"model.{name}": tensor for name, tensor in model.model.state_dict().items()}
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:rows]
    if model.lm_head is not None:
        weights["lm_head.weight"] = model.lm_head.weight.detach()
    plain.load_state_dict({name: tensor for name, tensor in weights.items() if name in plain.state_dict()})
    return plain


class _GivenBatch(GRPOTrainer):
    """TRL's trainer on a batch that it is given, so that it neither generates nor scores."""

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        return generation_batch


def trl_update(
    model: Any,
    samples: list[Sample],
    advantages: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
) -> Callable[[], float]:
    """TRL's update as a function that returns the gradient's norm."""
    arguments = GRPOConfig(
        output_dir=str(options.scratch / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(samples),
        num_generations=GENERATIONS,
        max_completion_length=256,
        loss_type="grpo",
        beta=0.0,
        learning_rate=LEARNING_RATE,
        max_grad_norm=1.0,
        report_to="none",
    )
    trainer = _GivenBatch(
        model,
        lambda prompts, **_: [0.0] * len(prompts),
        arguments,
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=tokenizer,
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return partial(_step, trainer, trl_batch(samples, advantages))


def trl_batch(samples: list[Sample], advantages: Tensor) -> dict[str, Any]:
    """What ``GRPOTrainer`` makes of such samples."""
    first = int(samples[0].stream.actions[0, :, 0].nonzero()[0])
    prompts = torch.stack([sample.stream.text_ids[0, :first] for sample in samples])
    answers = [sample.stream.text_ids[0, first:] for sample in samples]
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": pad_rows(answers, 0),
        "completion_mask": pad_rows([torch.ones_like(answer) for answer in answers], 0),
        "advantages": advantages,
        "num_items_in_batch": torch.tensor(sum(len(answer) for answer in answers)),
    }


def _step(trainer: GRPOTrainer, batch: dict[str, Any]) -> float:
    """What ``Trainer.train`` does around ``training_step``."""
    trainer.training_step(trainer.model, batch, None)
    norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    return float(norm)
