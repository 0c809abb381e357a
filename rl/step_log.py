"""What a step leaves behind: times, numbers about its samples, and samples to look at."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dina.eval.sample_log import (
    DropRecord,
    SampleRecord,
    ScoreRecord,
    WorstRecord,
    append_records,
    picture_path,
)
from dina.model.processor import DinaProcessor
from dina.policies.filters import Drop, WorstAction
from dina.policies.stats import channel_name
from dina.rewards.protocol import SuiteResult
from dina.rl.learner.batch import UpdateResult
from dina.rl.recipe.config import TrainConfig
from dina.rl.saved_rollouts import save_rollouts
from dina.rollout.protocol import Sample


@dataclass(frozen=True)
class Kept:
    """How many samples of a step are kept to be looked at.

    Attributes:
        records: with prompt, scores and verdict.
        pictures: of ``pictures_per_prompt`` samples of each prompt.
        troubled: pictures of samples that a filter dropped or a reward failed on, beside those.
    """

    records: int
    pictures: int
    troubled: int
    pictures_per_prompt: int = 2


# Whatever the batch, 100 000 steps leave some 100 MB of records unless most of them have trouble.
DUE = Kept(records=256, pictures=24, troubled=8)
BETWEEN = Kept(records=16, pictures=0, troubled=4)


@dataclass
class StepTimes:
    """Seconds of each phase of a step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        return {f"timing_s/{name}": value for name, value in self.seconds.items()}


def completion_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """TRL's ``completions/*`` in positions, and the share that was cut."""
    lengths = [int(s.stream.actions[0].any(1).sum()) for s in samples]
    return {
        "num_tokens": float(sum(s.stream.length for s in samples)),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(s.finish_reason == "length" for s in samples) / len(samples),
    }


class StepLog:
    """Keeps samples of a run to be looked at, and whole batches, as often as the recipe says.

    Samples that a filter dropped or a reward failed on are kept in every step, up to a few; and a step that learnt
    nothing is kept as one that was due.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    def save(self, number: int, samples: Sequence[Sample], scored: SuiteResult, update: UpdateResult) -> None:
        every = self.config.run.save_rollouts
        if every and number % every == 0:
            target = self.folder / "rollouts" / f"step_{number:06d}"
            shutil.rmtree(target, ignore_errors=True)
            save_rollouts(target, samples, scored.total)
        every = self.config.run.sample_steps
        due = bool(every and number % every == 0) or not update.steps
        self._keep(number, samples, scored, update, DUE if due else BETWEEN)

    def _keep(
        self, number: int, samples: Sequence[Sample], scored: SuiteResult, update: UpdateResult, kept: Kept
    ) -> None:
        """Writes the records of those in trouble first, then of the others, and their pictures."""
        troubled = sorted({d.row for d in update.dropped} | {f.sample_index for f in scored.failures})
        shown = [i for i, s in enumerate(samples) if s.request.index < kept.pictures_per_prompt]
        pictured = {*shown[: kept.pictures], *troubled[: kept.troubled]}
        rows = troubled
        if kept is DUE:
            rows = list(dict.fromkeys([*troubled, *sorted(pictured), *range(len(samples))]))
        records, pictures = [], {}
        for row in sorted(rows[: kept.records]):
            record = self._record(number, row, samples[row], scored, update, with_picture=row in pictured)
            records.append(record)
            for path, image in (
                (record.picture, samples[row].image),
                (record.question, samples[row].prompt.image),
            ):
                if path is not None and image is not None:
                    pictures[path] = image
        if records:
            append_records(self.folder, records, pictures)

    def _record(
        self,
        number: int,
        row: int,
        sample: Sample,
        scored: SuiteResult,
        update: UpdateResult,
        with_picture: bool,
    ) -> SampleRecord:
        prompt, request, measured = sample.prompt, sample.request, update.measured.get(row)
        drawn, asked = sample.image is not None, prompt.image is not None
        return SampleRecord(
            step=number,
            row=row,
            id=prompt.id,
            prompt=prompt.text,
            task=prompt.task,
            tag=prompt.tag,
            seed=request.seed,
            group=request.group,
            index=request.index,
            weight_version=sample.weight_version,
            finish_reason=sample.finish_reason,
            reward=_finite(scored.total[row]),
            scores=score_records(scored, row),
            answer=sample.text,
            picture=picture_path(number, row) if with_picture and drawn else None,
            question=picture_path(number, row, question=True) if with_picture and asked else None,
            grid=prompt.grid if drawn else None,
            entropy=_finite(measured.entropy) if measured else None,
            worst=self._worst(sample, measured.worst) if measured and measured.worst else None,
            drops=[_drop(entry.drop) for entry in update.dropped if entry.row == row],
        )

    def _worst(self, sample: Sample, worst: WorstAction) -> WorstRecord:
        """Where the action stands, for people: in the picture's grid, or in the answer."""
        actions = sample.stream.actions[0]
        place: dict[str, object] = {}
        if worst.channel == 0:
            spoken = actions[:, 0].nonzero().flatten()
            place = self._token(
                sample.stream.text_ids[0][spoken].tolist(), int((spoken < worst.position).sum())
            )
        elif sample.prompt.grid is not None:
            patches = actions[: worst.position, 1:].any(1).sum()
            row, column = divmod(int(patches), sample.prompt.grid[1])
            place = {"row": row, "column": column}
        difference = abs(worst.p_sampler - worst.p_actor)
        return WorstRecord(
            _finite(difference),
            _finite(worst.p_sampler),
            _finite(worst.p_actor),
            channel_name(worst.channel),
            worst.position,
            **place,  # type: ignore[arg-type]
        )

    def _token(self, ids: Sequence[int], number: int) -> dict[str, object]:
        """The ``number``-th token of an answer, and its (start, end) in the answer's text."""
        said = self._processor.decode_text(ids)
        ends = [len(self._processor.decode_text(ids[: number + more])) for more in (0, 1)]
        cut = len(said) - len(said.lstrip())
        start, end = (min(max(end - cut, 0), len(said.strip())) for end in ends)
        return {"token": self._processor.tokenizer.decode(ids[number]), "span": (start, end)}

    @cached_property
    def _processor(self) -> DinaProcessor:
        return DinaProcessor.from_pretrained(self.config.model.path)


def score_records(scored: SuiteResult, row: int) -> dict[str, ScoreRecord]:
    """What every reward that applies to a sample said of it."""
    failed = {f.reward: f.reason for f in scored.failures if f.sample_index == row}
    records = {}
    for name, scores in scored.per_reward.items():
        if name in failed:
            records[name] = ScoreRecord(None, failed[name], failed=True)
        elif scores[row] is not None:
            parts = scored.parts[name][row] or {}
            records[name] = ScoreRecord(_finite(scores[row]), str(parts.get("reason") or ""))
    return records


def _drop(drop: Drop) -> DropRecord:
    return DropRecord(drop.reason, _finite(drop.value), _finite(drop.threshold))


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
