"""Draws the pictures and answers of a prompt set with fixed seeds, and has them judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dina.errors import DinaError
from dina.eval.judge import Judge, Verdict
from dina.eval.pictures import picture_stats
from dina.eval.result import BenchmarkResult, Row
from dina.model.sampling import SamplingParams
from dina.rollout.protocol import Prompt, Request, RolloutEngine, Sample, derive_seed

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BenchmarkSettings:
    """How the samples are drawn.

    Attributes:
        samples_per_prompt: pictures per prompt. A question gets one answer while ``answers`` is greedy.
        seed: base seed; every sample's own seed follows from it, the prompt's id and the sample's number.
        pictures: distribution that pictures are drawn from.
        answers: distribution that answers are drawn from; greedy by default.
    """

    samples_per_prompt: int = 1
    seed: int = 0
    pictures: SamplingParams = field(default_factory=SamplingParams)
    answers: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0))

    def draws(self, prompt: Prompt) -> int:
        return 1 if prompt.task == "vqa" and self.answers.temperature == 0 else self.samples_per_prompt


def run_benchmark(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    judge: Judge,
    settings: BenchmarkSettings | None = None,
    *,
    name: str = "",
    on_sample: Progress | None = None,
    batch: int = 64,
) -> BenchmarkResult:
    """Draws and scores ``settings.samples_per_prompt`` samples of every prompt.

    Two calls with the same prompts and settings use the same seeds, so their results can be paired.

    Args:
        name: what the result is called in tables and reports, for instance the checkpoint's path.
        on_sample: called with (samples done, samples in all).
        batch: samples handed to the judge at once.

    Raises:
        DinaError: no prompts, or two prompts with one id.
    """
    settings = settings or BenchmarkSettings()
    _check(prompts)
    started = time.perf_counter()
    requests = [
        Request(prompt, derive_seed(settings.seed, prompt.id, k), group, k)
        for group, prompt in enumerate(prompts)
        for k in range(settings.draws(prompt))
    ]
    rows: dict[tuple[int, int], Row] = {}
    pending: list[Sample] = []
    for sample in _generate(engine, requests, settings):
        pending.append(sample)
        if len(pending) == batch:
            rows.update(_judged(judge, pending))
            pending = []
            if on_sample:
                on_sample(len(rows), len(requests))
    rows.update(_judged(judge, pending))
    if on_sample:
        on_sample(len(rows), len(requests))
    ordered = [rows.get((r.group, r.index)) or _lost(r) for r in requests]
    return BenchmarkResult(
        label=judge.label,
        name=name,
        settings=asdict(settings),
        rows=ordered,
        pictures=picture_stats(_by_prompt(ordered)),
        seconds=time.perf_counter() - started,
    )


def _check(prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise DinaError("There are no prompts to evaluate. Give a prompt file with at least one line.")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DinaError(
                f"Prompt id {prompt.id!r} occurs twice; ids decide the seeds, so each must be unique."
            )
        seen.add(prompt.id)


def _generate(
    engine: RolloutEngine, requests: Sequence[Request], settings: BenchmarkSettings
) -> Iterator[Sample]:
    for task, sampling in (("t2i", settings.pictures), ("vqa", settings.answers)):
        chosen = [request for request in requests if request.prompt.task == task]
        if chosen:
            yield from engine.generate(chosen, sampling)


def _judged(judge: Judge, samples: Sequence[Sample]) -> dict[tuple[int, int], Row]:
    if not samples:
        return {}
    verdicts = judge.judge(samples)
    return {
        (sample.request.group, sample.request.index): _row(sample, verdict)
        for sample, verdict in zip(samples, verdicts, strict=True)
    }


def _row(sample: Sample, verdict: Verdict) -> Row:
    prompt = sample.prompt
    return Row(
        prompt_id=prompt.id,
        tag=prompt.tag,
        task=prompt.task,
        prompt=prompt.text,
        seed=sample.request.seed,
        index=sample.request.index,
        score=verdict.score,
        scores=verdict.scores,
        guards=verdict.guards,
        reason=verdict.reason,
        failure=verdict.failure,
        answer=sample.text,
        expected=_expected(prompt),
        finish_reason=sample.finish_reason,
        image=prompt.image if prompt.task == "vqa" else sample.image,
    )


def _lost(request: Request) -> Row:
    prompt = request.prompt
    return Row(
        prompt_id=prompt.id,
        tag=prompt.tag,
        task=prompt.task,
        prompt=prompt.text,
        seed=request.seed,
        index=request.index,
        score=None,
        failure="the engine returned no sample",
    )


def _expected(prompt: Prompt) -> str | None:
    answer: Any = prompt.columns.get("answer")
    return (
        None if answer is None else ", ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
    )


def _by_prompt(rows: Sequence[Row]) -> list[list[np.ndarray]]:
    groups: dict[str, list[np.ndarray]] = {}
    for row in rows:
        if row.task == "t2i" and row.image is not None:
            groups.setdefault(row.prompt_id, []).append(row.image)
    return list(groups.values())
