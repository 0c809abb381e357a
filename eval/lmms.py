"""Lets lmms-eval run a DiNA checkpoint.

``python -m lmms_eval --model dina --model_args pretrained=CHECKPOINT --tasks mmstar`` finds this module by its entry
point, once lmms-eval is installed (docs/understanding.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from dina.errors import DinaError
from dina.eval.evaluate import open_torch_engine
from dina.model.sampling import SamplingParams
from dina.rollout.protocol import Prompt, Request, derive_seed

_NEW_TOKENS = 64


class DinaLmms(lmms):
    """A checkpoint as lmms-eval sees it: a question and one picture in, text out.

    Args:
        pretrained: the checkpoint folder.
        device: ``cpu``, ``cuda``, ``cuda:1``.
        batch_size: questions answered at once.
        seed: of tasks that sample.

    Raises:
        DinaError: the folder is no checkpoint.
    """

    is_simple = True

    def __init__(
        self, pretrained: str, device: str = "cpu", batch_size: int | str = 16, seed: int = 0, **_: Any
    ) -> None:
        super().__init__()
        self.engine = open_torch_engine(Path(pretrained), int(batch_size), device)
        self.batch_size, self.seed = int(batch_size), seed

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers in the order of ``requests``.

        Raises:
            DinaError: a question comes with no picture or with several, or does not fit the context.
        """
        answers = [""] * len(requests)
        for sampling, numbers in _alike(requests):
            for start in range(0, len(numbers), self.batch_size):
                part = numbers[start : start + self.batch_size]
                asked = [
                    Request(self._prompt(requests[n], n), derive_seed(self.seed, "lmms", n), n) for n in part
                ]
                for sample in self.engine.generate(asked, sampling):
                    number = sample.request.group
                    answers[number] = _until(sample.text or "", requests[number].args[1].get("until"))
        return answers

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raises: DinaError: always; a DiNA conversation is one question and one answer."""
        raise DinaError("this task asks in several rounds, which the adapter of DiNA does not do")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Raises: DinaError: always; choose the variant of the task that generates."""
        raise DinaError("this task compares likelihoods; choose its variant with output_type generate_until")

    def _prompt(self, request: Instance, number: int) -> Prompt:
        context, _, doc_to_visual, doc_id, task, split = request.args
        pictures = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(pictures) != 1:
            raise DinaError(
                f"{task}, row {doc_id}: asks about {len(pictures)} pictures; the adapter takes one"
            )
        question = context.replace("<image>", "").strip()
        return Prompt(str(number), question, "vqa", image=np.array(pictures[0].convert("RGB")))


def manifest() -> ModelManifest:
    """The entry point ``dina`` of the group ``lmms_eval.models``."""
    return ModelManifest("dina", simple_class_path=f"{__name__}.{DinaLmms.__name__}")


def _alike(requests: Sequence[Instance]) -> Iterator[tuple[SamplingParams, list[int]]]:
    """Sampling parameters, each with the numbers of the requests that ask for them."""
    groups: dict[SamplingParams, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(_sampling(request.args[1]), []).append(number)
    yield from groups.items()


def _sampling(options: dict[str, Any]) -> SamplingParams:
    greedy = not options.get("do_sample", float(options.get("temperature") or 0) > 0)
    return SamplingParams(
        temperature=0.0 if greedy else float(options.get("temperature") or 1.0),
        top_k=int(options.get("top_k") or 0),
        top_p=float(options.get("top_p") or 1.0),
        max_new_tokens=int(options.get("max_new_tokens") or _NEW_TOKENS),
    )


def _until(text: str, ends: str | list[str] | None) -> str:
    for end in [ends] if isinstance(ends, str) else ends or []:
        if end:
            text = text.split(end)[0]
    return text
