"""Dynamic sampling: a step's groups that teach nothing are replaced by others, for a bounded number of rounds.

DAPO (Yu et al. 2025, arXiv 2503.14476, section 3.2): a group whose samples all have one reward has no advantage, so
that a batch of easy or hopeless prompts has little gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dina.model.sampling import SamplingParams
from dina.policies.advantages import group_advantages
from dina.rewards.protocol import SuiteResult
from dina.rl.data import PromptOrder
from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import Rollout, Scorer
from dina.rollout.protocol import Prompt, Request, Sample, derive_seed


class Refill:
    """Replaces silent groups by groups of other prompts with the same tag, so that a batch keeps its composition.

    The replacements come from orders of their own, one per tag: what is drawn ahead does not depend on them.

    Args:
        rollout, scorer: draw and score what is missing, with the newest weights.
        prompts: of the run.
        sampling: the distribution of the rollouts.
    """

    def __init__(
        self,
        config: TrainConfig,
        rollout: Rollout,
        scorer: Scorer,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
    ) -> None:
        self.config, self.rollout, self.scorer, self.sampling = config, rollout, scorer, sampling
        self.rounds = config.algorithm.refill_rounds
        by_tag: dict[str, list[Prompt]] = {}
        for prompt in prompts if self.rounds else ():
            by_tag.setdefault(prompt.tag, []).append(prompt)
        difficulty = config.data.difficulty
        self.orders = {
            tag: PromptOrder(mine, derive_seed(config.run.seed, "refill"), "shuffle", difficulty)
            for tag, mine in by_tag.items()
        }

    def __call__(
        self, number: int, samples: Sequence[Sample], scored: SuiteResult
    ) -> tuple[list[Sample], SuiteResult, dict[str, float]]:
        """The batch of step ``number`` after replacing, with its scores and the metrics ``refill/*``.

        Args:
            samples: ordered by group and by index, as ``scored`` is.
        """
        if not self.rounds:
            return list(samples), scored, {}
        before, drawn, replaced = scored.total, 0, 0
        samples, silent = list(samples), silent_groups(samples, scored.total)
        for attempt in range(1, self.rounds + 1):
            if not silent:
                break
            new, new_scored = self._draw(
                number, attempt, {group: samples[rows[0]] for group, rows in silent.items()}
            )
            still = silent_groups(new, new_scored.total)
            rows = _rows_by_group(new)
            moved = {
                old: row
                for group, places in silent.items()
                if group not in still
                for old, row in zip(places, rows[group], strict=True)
            }
            for old, row in moved.items():
                samples[old] = new[row]
            scored = scored.with_rows(moved, new_scored)
            drawn, replaced = drawn + len(new), replaced + len(silent) - len(still)
            silent = {group: places for group, places in silent.items() if group in still}
        groups = self.config.algorithm.prompts_per_step
        known = [total for total in before if total is not None]
        return (
            samples,
            scored,
            {
                "refill/drawn": drawn / len(samples),
                "refill/replaced": replaced / groups,
                "refill/left": len(silent) / groups,
                **({"refill/reward_before": sum(known) / len(known)} if known else {}),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        return {tag: order.state_dict() for tag, order in self.orders.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: DinaError: the state is that of other prompts."""
        for tag, order in self.orders.items():
            if tag in state:
                order.load_state_dict(state[tag])

    def _draw(
        self, number: int, attempt: int, wanted: Mapping[int, Sample]
    ) -> tuple[list[Sample], SuiteResult]:
        """New groups under the numbers of those that they may replace, ordered, with their scores."""
        seed, size = self.config.run.seed, self.config.algorithm.num_generations
        requests = []
        for group, old in wanted.items():
            prompt = self.orders[old.prompt.tag].take(1)[0]
            requests += [
                Request(prompt, derive_seed(seed, number, "refill", attempt, group, index), group, index)
                for index in range(size)
            ]
        new = sorted(
            self.rollout.generate(requests, self.sampling), key=lambda s: (s.request.group, s.request.index)
        )
        for rows in _rows_by_group(new).values():
            self.scorer.submit(number, [new[row] for row in rows])
        return new, self.scorer.collect(number)


def silent_groups(samples: Sequence[Sample], totals: Sequence[float | None]) -> dict[int, list[int]]:
    """Number and rows of the groups whose samples give no advantage: rewards all equal, or fewer than two."""
    rewards = torch.tensor([math.nan if total is None else total for total in totals], dtype=torch.float64)
    groups = torch.tensor([sample.request.group for sample in samples])
    advantages = group_advantages(rewards, groups, "none").values
    return {
        group: rows for group, rows in _rows_by_group(samples).items() if not bool(advantages[rows].any())
    }


def _rows_by_group(samples: Sequence[Sample]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(sample.request.group, []).append(row)
    return rows
