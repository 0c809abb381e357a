"""The model as its own judge: frozen weights answer questions about the picture, whose answers the prompt gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dina.rewards.extras import pick_device
from dina.rewards.geneval import Clause, parse_clauses, plural
from dina.rewards.protocol import LogExtra, log_parts
from dina.rewards.registry import load_object
from dina.rewards.vqa import NUMBERS

Question = tuple[str, str]
"""A question, and the answer that is right if the picture shows what was asked for."""
Decompose = Callable[[str, Mapping[str, Any]], Sequence[Question]]


class AnswerScorer(Protocol):
    """Says how probable a model finds given answers."""

    def log_probs(
        self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]
    ) -> list[float]:
        """Log-probability in nats of each answer. ``images``: ``[H, W, 3]`` uint8."""
        ...


class SelfJudgeReward:
    """Reward: mean probability that a DiNA model gives to the right answers of questions about the picture, 0 to 1.

    The questions are those of :func:`questions_about`, and so is what they need: ``include`` or ``text`` of the row, or
    its prompt alone. ``None`` without a drawn picture. Part: ``worst``, the probability of the least certain answer.

    Args:
        model: checkpoint folder of the judge. Its weights stay as they are, whatever is trained.
        questions: how a row is decomposed, ``module:attr`` or a callable ``(prompt, columns) -> [(question, answer)]``.
        batch_size: questions per forward pass.
        device: a torch device; by default a GPU if there is one.
        scorer: what asks the model, ``module:attr`` of a class, or an :class:`AnswerScorer`.
    """

    def __init__(
        self,
        model: str,
        questions: str | Decompose = "dina.rewards.alignment.self_judge:questions_about",
        batch_size: int = 64,
        device: str | None = None,
        scorer: str | AnswerScorer = "dina.rollout.answers:AnswerScorer",
    ) -> None:
        self.questions: Decompose = load_object(questions) if isinstance(questions, str) else questions
        self.model, self.device, self.scorer = model, device, scorer
        self.questions_at_once = batch_size

    def setup(self) -> None:
        _ = self._answers

    def __call__(
        self,
        prompts: Sequence[str],
        generated_images: Sequence[Image.Image | None],
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float | None]:
        rows = [
            {name: values[i] for name, values in columns.items() if isinstance(values, list)}
            for i in range(len(prompts))
        ]
        asked = [
            list(self.questions(prompt, row)) if image is not None else []
            for prompt, row, image in zip(prompts, rows, generated_images, strict=True)
        ]
        found = iter(self._probabilities(generated_images, asked))
        shares = [[next(found) for _ in questions] for questions in asked]
        log_parts(
            log_extra,
            [
                {"worst": min(share), "reason": _words(questions, share)} if share else None
                for questions, share in zip(asked, shares, strict=True)
            ],
        )
        return [math.fsum(share) / len(share) if share else None for share in shares]

    def _probabilities(
        self, images: Sequence[Image.Image | None], asked: Sequence[Sequence[Question]]
    ) -> list[float]:
        pictures = [None if image is None else np.array(image.convert("RGB")) for image in images]
        flat = [
            (picture, question, answer)
            for picture, questions in zip(pictures, asked, strict=True)
            if picture is not None
            for question, answer in questions
        ]
        if not flat:
            return []
        shown, questions, answers = zip(*flat, strict=True)
        return [math.exp(logp) for logp in self._answers.log_probs(shown, questions, answers)]

    @cached_property
    def _answers(self) -> AnswerScorer:
        if not isinstance(self.scorer, str):
            return self.scorer
        make = load_object(self.scorer)
        return make(self.model, self.questions_at_once, pick_device(self.device))


def questions_about(prompt: str, columns: Mapping[str, Any]) -> list[Question]:
    """What a picture of a row must let one answer.

    ``include`` gives "is there a red star?" (and "how many stars are there?" for a number) and "is the star left of
    the ring?"; ``text`` gives "what does the text say?". A row with neither is asked for as a whole.

    Args:
        columns: the row's ``include`` (as in GenEval) and ``text``, a list; both may be absent.
    """
    clauses = parse_clauses(columns["include"]) if columns.get("include") else []
    questions = list(dict.fromkeys(question for clause in clauses for question in _about(clause, clauses)))
    questions += [("what does the text say?", text) for text in columns.get("text") or []]
    return questions or [(f'does the picture show "{prompt}"?', "yes")]


def _about(clause: Clause, clauses: Sequence[Clause]) -> list[Question]:
    noun = f"{clause.color} {clause.label}" if clause.color else clause.label
    article = "an" if noun[0] in "aeiou" else "a"
    questions: list[Question] = []
    if clause.count > 1 or clause.label in [other.label for other in clauses if other is not clause]:
        total = sum(other.count for other in clauses if other.label == clause.label)
        number = NUMBERS[total] if total < len(NUMBERS) else str(total)
        questions.append((f"how many {plural(clause.label)} are there?", number))
    if clause.count == 1 or clause.color:
        questions.append((f"is there {article} {noun}?", "yes"))
    if clause.position:
        relation, other = clause.position
        questions.append((f"is the {clause.label} {relation} the {clauses[other].label}?", "yes"))
    return questions


def _words(questions: Sequence[Question], shares: Sequence[float]) -> str:
    return "; ".join(
        f"{question} {answer}: {share:.2f}"
        for (question, answer), share in zip(questions, shares, strict=True)
    )
