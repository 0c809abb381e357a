"""Scores a batch of samples by several rewards. A failed score is counted and shown, and is never a zero."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from dina.errors import DinaError
from dina.rewards.batch import RewardBatch
from dina.rewards.protocol import RewardFailure, RewardSpec, SuiteResult
from dina.rewards.running import RunningReward
from dina.rollout.protocol import Sample

MAX_TIMEOUTS_IN_A_ROW = 3
log = logging.getLogger(__name__)


class RewardSuite:
    """The rewards of a recipe, each in its own thread; all of them score a batch at the same time.

    Raises:
        DinaError: an unknown reward, a wrong keyword, a set-up that raises, or two rewards of one name.
    """

    def __init__(self, specs: Sequence[RewardSpec]) -> None:
        twice = [label for label, n in Counter(spec.label for spec in specs).items() if n > 1]
        if twice:
            raise DinaError(f"two rewards are called {twice[0]!r}; give one of them another `name`")
        self.rewards = [RunningReward(spec) for spec in specs]

    def score(self, samples: Sequence[Sample], step: int = 0) -> SuiteResult:
        """Scores ``samples``; ``step`` reaches rewards as ``trainer_state.global_step``.

        Raises:
            DinaError: a score failed whose reward is ``required`` or ``on_error="raise"``, or one reward
                timed out in three batches in a row.
        """
        batch = RewardBatch(samples, step)
        for reward in self.rewards:
            reward.start(batch)
        for reward in self.rewards:
            reward.finish()
        failures = [failure for reward in self.rewards for failure in reward.failures]
        self._show(failures, samples)
        return SuiteResult(
            total=self._combine(len(samples), failures),
            per_reward={reward.spec.label: reward.scores for reward in self.rewards},
            parts={reward.spec.label: reward.parts for reward in self.rewards},
            failures=failures,
            seconds={reward.spec.label: reward.seconds for reward in self.rewards},
            logged={key: value for reward in self.rewards for key, value in reward.logged().items()},
        )

    def close(self) -> None:
        for reward in self.rewards:
            reward.close()

    def _combine(self, n: int, failures: Sequence[RewardFailure]) -> list[float | None]:
        trained = [reward for reward in self.rewards if reward.spec.weight != 0]
        names = {reward.spec.label for reward in trained}
        failed = {failure.sample_index for failure in failures if failure.reward in names}
        total: list[float | None] = []
        for row in range(n):
            terms = [(reward.spec.weight, reward.scores[row]) for reward in trained]
            known = [weight * score for weight, score in terms if score is not None]
            total.append(sum(known) if known and row not in failed else None)
        return total

    def _show(self, failures: Sequence[RewardFailure], samples: Sequence[Sample]) -> None:
        for reward in self.rewards:
            mine = [failure for failure in failures if failure.reward == reward.spec.label]
            if not mine:
                continue
            first = mine[0]
            where = f"sample {first.sample_index} (prompt {samples[first.sample_index].prompt.id})"
            if reward.spec.fatal:
                raise DinaError(f"reward {first.reward!r} failed on {where}: {first.reason}")
            text = "reward %r failed for %d of %d samples; the first is %s: %s"
            log.warning(text, first.reward, len(mine), len(samples), where, first.reason)
            if reward.timeouts >= MAX_TIMEOUTS_IN_A_ROW:
                raise DinaError(
                    f"reward {first.reward!r} timed out in {reward.timeouts} batches in a row; "
                    f"raise its timeout (now {reward.spec.timeout:g} s) or mend it"
                )
