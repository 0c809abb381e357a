"""After every weight sync: do the rollout workers compute with the learner's weights?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rl.roles import LearnerRole, Pending, Rollout
from dina.rollout.probe import compare_probe

LONGEST = 16
"""Sampled positions that are asked about. An engine takes them one by one, so that a whole picture would cost more
than the weights' way, and a weight that is wrong shows in the first ones."""


def beginning(stream: TokenStream) -> TokenStream:
    """The prompt of a single-row stream and its first sampled positions, up to the first that the layout sets."""
    acts = stream.actions[0].any(1)
    first = int(acts.nonzero()[0])
    forced = (~acts[first : first + LONGEST]).nonzero()
    return stream.before(first + (int(forced[0]) if len(forced) else LONGEST))


@dataclass
class _Asked:
    pending: Pending
    actor: Tensor
    actions: Tensor


class WeightProbe:
    """Asks every engine for the log-probabilities of the beginning of a stream, and compares them with the learner's.

    The workers answer in the order of their queue, so in async mode the answer is read when the first batch that
    the new weights drew is taken: until then nothing is trained on them.

    Attributes:
        version: of the weights that were asked about last.
    """

    def __init__(self, rollout: Rollout, learner: LearnerRole, sampling: SamplingParams, dtype: str) -> None:
        self.rollout, self.learner, self.sampling, self.dtype = rollout, learner, sampling, dtype
        self.version: int | None = None
        self._asked: dict[int, _Asked] = {}

    def start(self, stream: TokenStream, version: int) -> None:
        """Asks about weights ``version``, which the workers have been sent and the learner holds now."""
        self.version, stream = version, beginning(stream)
        pending = self.rollout.start_probe([stream], self.sampling)
        if pending is not None:
            self._asked[version] = _Asked(pending, self.learner.log_probs(stream)[0].cpu(), stream.actions[0])

    def check(self, version: int) -> dict[str, float]:
        """Compares what was asked about weights up to ``version``; returns the largest differences.

        Raises:
            DinaError: an engine computes with other weights.
        """
        metrics: dict[str, float] = {}
        for asked_version in [v for v in self._asked if v <= version]:
            asked = self._asked.pop(asked_version)
            for answer in asked.pending.wait():
                report = compare_probe(answer, [asked.actor], [asked.actions], self.dtype)
                for name, value in report.metrics().items():
                    metrics[name] = max(value, metrics.get(name, 0.0))
        return metrics
