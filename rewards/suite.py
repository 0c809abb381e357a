"""Scores a batch of samples by several rewards. A failed score is counted and shown, and is never a zero."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from dina.errors import DinaError
from dina.rewards.batch import AnySample, RewardBatch
from dina.rewards.combine import Term, clip_scores, normalise_in_groups, prompt_weights, weighted_sum
from dina.rewards.protocol import RewardFailure, RewardSpec, SuiteResult
from dina.rewards.running import RunningReward

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

    def score(self, samples: Sequence[AnySample], step: int = 0) -> SuiteResult:
        """Scores ``samples``, whole groups of them; ``step`` reaches rewards as ``trainer_state.global_step``.

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
            total=weighted_sum([self._term(reward, batch) for reward in self.rewards]),
            per_reward={reward.spec.label: reward.scores for reward in self.rewards},
            parts={reward.spec.label: reward.parts for reward in self.rewards},
            failures=failures,
            seconds={reward.spec.label: reward.seconds for reward in self.rewards},
            logged={key: value for reward in self.rewards for key, value in _logged(reward).items()},
        )

    def close(self) -> None:
        for reward in self.rewards:
            reward.close()

    def _term(self, reward: RunningReward, batch: RewardBatch) -> Term:
        spec, n = reward.spec, len(batch.samples)
        failed = {failure.sample_index for failure in reward.failures}
        scores = reward.scores
        if spec.clip is not None:
            scores = clip_scores(scores, *spec.clip)
        if spec.normalise == "group":
            scores = normalise_in_groups(scores, batch.groups)
        known = [other.spec.label for other in self.rewards]
        columns = [sample.prompt.columns for sample in batch.samples]
        weights = prompt_weights(columns, spec.label, spec.weight, known) if spec.trained else [0.0] * n
        return Term(scores, weights, [row in failed for row in range(n)])

    def _show(self, failures: Sequence[RewardFailure], samples: Sequence[AnySample]) -> None:
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


def _logged(reward: RunningReward) -> dict[str, float]:
    """What a reward logged, and the share of its scores that its clip changed."""
    known = [score for score in reward.scores if score is not None]
    if reward.spec.clip is None or not known:
        return reward.logged()
    low, high = reward.spec.clip
    share = sum(not low <= score <= high for score in known) / len(known)
    return {**reward.logged(), f"rewards/{reward.spec.label}/clipped": share}
