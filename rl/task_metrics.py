"""What a step's metrics are for each of its tasks, where one batch mixes drawings and answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dina.rl.learner.batch import UpdateResult
from dina.rl.refill import silent_groups
from dina.rollout.protocol import Sample


def task_metrics(
    samples: Sequence[Sample], totals: Sequence[float | None], update: UpdateResult
) -> dict[str, float]:
    """``task/<task>/{reward,frac_reward_zero_std,mean_length,entropy,kept}``; nothing for a batch of one task.

    Args:
        totals: reward of each sample, ``None`` where there is none.
    """
    tasks = dict.fromkeys(sample.prompt.task for sample in samples)
    if len(tasks) < 2:
        return {}
    dropped = {entry.row for entry in update.dropped}
    metrics: dict[str, float] = {}
    for task in tasks:
        rows = [row for row, sample in enumerate(samples) if sample.prompt.task == task]
        mine = [samples[row] for row in rows]
        actions = [sample.stream.actions[0] for sample in mine]
        rewards = [total for row in rows if (total := totals[row]) is not None]
        silent = silent_groups(mine, [totals[row] for row in rows])
        entropy = sum(float(s.entropies[a].sum()) for s, a in zip(mine, actions, strict=True))
        values = {
            "reward": sum(rewards) / len(rewards) if rewards else math.nan,
            "frac_reward_zero_std": len(silent) / len({s.request.group for s in mine}),
            "mean_length": sum(int(a.any(1).sum()) for a in actions) / len(mine),
            "entropy": entropy / sum(int(a.sum()) for a in actions),
            "kept": sum(row not in dropped for row in rows) / len(rows),
        }
        metrics |= {f"task/{task}/{name}": value for name, value in values.items() if math.isfinite(value)}
    return metrics
