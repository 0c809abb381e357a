"""What a step leaves behind: times, numbers about its samples, and samples to look at."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dina.eval.runs import save_samples
from dina.rewards.protocol import SuiteResult
from dina.rl.config import TrainConfig
from dina.rl.learner import UpdateResult
from dina.rl.saved_rollouts import save_rollouts
from dina.rollout.protocol import Sample


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


def save_step(
    config: TrainConfig,
    folder: Path,
    number: int,
    samples: Sequence[Sample],
    scored: SuiteResult,
    update: UpdateResult,
) -> None:
    """Keeps samples of a step to be looked at, and the whole batch, as often as the recipe says.

    A step that learnt nothing is always kept, with the reasons.
    """
    every = config.run.save_rollouts
    if every and number % every == 0:
        target = folder / "rollouts" / f"step_{number:06d}"
        shutil.rmtree(target, ignore_errors=True)
        save_rollouts(target, samples, scored.total)
    every = config.run.sample_steps
    due = every and number % every == 0
    if not due and update.steps:
        return
    reasons = [reward_reason(scored, i) for i in range(len(samples))]
    for dropped in update.dropped:
        reasons[dropped.row] += f" [left out: {dropped.drop}]"
    shown = [i for i, s in enumerate(samples) if s.request.index < 2][:24]
    save_samples(
        folder / "samples",
        number,
        [samples[i] for i in shown],
        [scored.total[i] for i in shown],
        [reasons[i] for i in shown],
    )


def reward_reason(scored: SuiteResult, row: int) -> str:
    """Every reward of a sample in words: its score and its own reason."""
    texts = []
    for name, scores in scored.per_reward.items():
        if scores[row] is not None:
            parts = scored.parts[name][row] or {}
            texts.append(
                f"{name} {scores[row]:.2f}" + (f": {parts['reason']}" if parts.get("reason") else "")
            )
    texts += [f"{f.reward} failed: {f.reason}" for f in scored.failures if f.sample_index == row]
    return "; ".join(texts)
