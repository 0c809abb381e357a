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
        result = self.measure(samples, step)
        for reward in self.rewards:
            check_timeouts(reward.spec, reward.timeouts)
        result.total = total_of([reward.spec for reward in self.rewards], samples, result)
        return result

    def measure(self, samples: Sequence[AnySample], step: int = 0) -> SuiteResult:
        """The same without ``total``, for a part of a recipe's rewards; time-outs in a row are the caller's matter."""
        batch = RewardBatch(samples, step)
        for reward in self.rewards:
            reward.start(batch)
        for reward in self.rewards:
            reward.finish()
        failures = [failure for reward in self.rewards for failure in reward.failures]
        self._show(failures, samples)
        return SuiteResult(
            total=[],
            per_reward={reward.spec.label: reward.scores for reward in self.rewards},
            parts={reward.spec.label: reward.parts for reward in self.rewards},
            failures=failures,
            seconds={reward.spec.label: reward.seconds for reward in self.rewards},
            logged={key: value for reward in self.rewards for key, value in _logged(reward).items()},
            timed_out=[reward.spec.label for reward in self.rewards if reward.timed_out],
        )

    def close(self) -> None:
        for reward in self.rewards:
            reward.close()

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


def total_of(
    specs: Sequence[RewardSpec], samples: Sequence[AnySample], result: SuiteResult
) -> list[float | None]:
    """The weighted sum per sample of what all rewards of a recipe measured on whole groups."""
    groups = RewardBatch(samples).groups
    columns = [sample.prompt.columns for sample in samples]
    known = [spec.label for spec in specs]

    def term(spec: RewardSpec) -> Term:
        scores = result.per_reward[spec.label]
        if spec.clip is not None:
            scores = clip_scores(scores, *spec.clip)
        if spec.normalise == "group":
            scores = normalise_in_groups(scores, groups)
        failed = {failure.sample_index for failure in result.failures if failure.reward == spec.label}
        nothing = [0.0] * len(samples)
        weights = prompt_weights(columns, spec.label, spec.weight, known) if spec.trained else nothing
        return Term(scores, weights, [row in failed for row in range(len(samples))])

    return weighted_sum([term(spec) for spec in specs])


def check_timeouts(spec: RewardSpec, in_a_row: int) -> None:
    """Raises: DinaError: a reward timed out in so many batches in a row that it will not come back."""
    if in_a_row >= MAX_TIMEOUTS_IN_A_ROW:
        raise DinaError(
            f"reward {spec.label!r} timed out in {in_a_row} batches in a row; "
            f"raise its timeout (now {spec.timeout:g} s) or mend it"
        )


def _logged(reward: RunningReward) -> dict[str, float]:
    """What a reward logged, and the share of its scores that its clip changed."""
    known = [score for score in reward.scores if score is not None]
    if reward.spec.clip is None or not known:
        return reward.logged()
    low, high = reward.spec.clip
    share = sum(not low <= score <= high for score in known) / len(known)
    return {**reward.logged(), f"rewards/{reward.spec.label}/clipped": share}
