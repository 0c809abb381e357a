"""A local vision language model from transformers as a judge of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from dina.errors import DinaError
from dina.rewards.alignment.formats import JudgeError, Judgement, ScoreFormat, make_format
from dina.rewards.extras import load_pretrained, pick_device
from dina.rewards.protocol import LogExtra, log_parts


class VLMReward:
    """Reward: how well a local vision language model finds that the picture shows its prompt, 0 to 1.

    An answer without a score is a failed score with its reason logged, never a zero. ``None`` without a drawn picture.

    Args:
        model: hub name or folder of an image-text-to-text model with a chat template.
        form: ``expected`` (one token), ``unified_reward`` or ``tagged``, or a :class:`ScoreFormat`.
        instruction: a question of your own, with ``{prompt}`` in it.
        batch_size: pictures per forward pass.
        device: a torch device; by default a GPU if there is one.
    """

    def __init__(
        self,
        model: str,
        form: str | ScoreFormat = "expected",
        instruction: str | None = None,
        batch_size: int = 4,
        device: str | None = None,
    ) -> None:
        self.model, self.form = model, make_format(form, instruction)
        self.batch_size, self.device = batch_size, device

    def __call__(
        self,
        prompts: Sequence[str],
        generated_images: Sequence[Image.Image | None],
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | JudgeError | None]:
        pairs = [
            (p, image.convert("RGB")) for p, image in zip(prompts, generated_images, strict=True) if image
        ]
        judged: list[Judgement] = []
        for start in range(0, len(pairs), self.batch_size):
            judged += self._judge(pairs[start : start + self.batch_size])
        found = iter(judged)
        return scores_of([next(found) if image else None for image in generated_images], log_extra)

    @torch.inference_mode()
    def _judge(self, pairs: Sequence[tuple[str, Image.Image]]) -> list[Judgement]:
        model, processor = self._loaded
        inputs = processor.apply_chat_template(
            [_conversation(self.form.question(prompt), image) for prompt, image in pairs],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        ).to(model.device, model.dtype)
        if self.form.labels:
            ids = self._label_ids
            shares = model(**inputs).logits[:, -1].float().softmax(dim=-1)[:, ids].tolist()
            return [self.form.weigh(dict(zip(self.form.labels, row, strict=True))) for row in shares]
        written = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.form.max_tokens,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        answers = processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [self.form.read(answer) for answer in answers]

    @cached_property
    def _label_ids(self) -> list[int]:
        tokenizer = self._loaded[1].tokenizer
        found = [tokenizer.encode(label, add_special_tokens=False) for label in self.form.labels]
        for label, ids in zip(self.form.labels, found, strict=True):
            if len(ids) != 1:
                raise DinaError(f"{self.model}: the label {label!r} is {len(ids)} tokens, and must be one")
        return [ids[0] for ids in found]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor  # heavy

        device = pick_device(self.device)
        dtype = torch.float32 if device.type == "cpu" else "auto"
        model = load_pretrained(AutoModelForImageTextToText, self.model, dtype=dtype)
        processor = load_pretrained(AutoProcessor, self.model)
        processor.tokenizer.padding_side = "left"  # the last position of every row is the answer's
        return model.to(device).eval(), processor


def scores_of(
    judged: Sequence[Judgement | None], log_extra: LogExtra | None = None
) -> list[float | JudgeError | None]:
    """Scores of a batch, with parts and reasons logged; an answer without a score becomes an error in its place."""
    log_parts(log_extra, [None if j is None else {**j.parts, "reason": j.reason} for j in judged])
    return [None if j is None else JudgeError(j.reason) if j.score is None else j.score for j in judged]


def _conversation(question: str, image: Image.Image) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]
