"""After a weight transfer: does the engine compute with the weights that the learner has?

The engine scores a few fixed streams (``engine.probe``), the learner scores them too, and the log-probabilities
are compared. A lost, half-loaded or stale weight shows here, and not as a mismatch in the middle of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dina.errors import DinaError


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the mean and the largest absolute difference of log-probability, in nats."""

    mean: float
    largest: float


# Float32 engines differ in the order of sums; bfloat16 ones round every activation, so that rare classes move
# by tenths of a nat, and only the mean says much.
TOLERANCES = {
    "float32": Tolerance(mean=1e-4, largest=1e-3),
    "float16": Tolerance(mean=2e-2, largest=0.3),
    "bfloat16": Tolerance(mean=8e-2, largest=1.5),
}


@dataclass(frozen=True)
class ProbeReport:
    """Absolute differences of log-probability over ``actions`` actions, in nats."""

    actions: int
    mean: float
    largest: float

    def metrics(self) -> dict[str, float]:
        return {"probe/mean_logp_diff": self.mean, "probe/max_logp_diff": self.largest}


def compare_probe(
    sampler: Sequence[Tensor],
    actor: Sequence[Tensor],
    actions: Sequence[Tensor],
    dtype: str = "float32",
    tolerance: Tolerance | None = None,
) -> ProbeReport:
    """Compares the engine's and the learner's log-probabilities of the same streams.

    Args:
        sampler: per stream ``[T, C]``, what ``engine.probe`` gave.
        actor: per stream ``[T, C]``, the learner's ``log_probs_and_entropy``.
        actions: per stream ``[T, C]`` bool, ``stream.actions[0]``.
        dtype: what the engine computes in; chooses the tolerance.
        tolerance: bounds of your own.

    Raises:
        DinaError: the probe failed, or there is nothing to compare.
    """
    bound = tolerance or TOLERANCES[dtype]
    pairs = zip(sampler, actor, actions, strict=True)
    # A stream in which both are -inf (a class that truncation removed) agrees.
    parts = [torch.nan_to_num(s.float().cpu() - a.float().cpu(), nan=0.0)[m.cpu()].abs() for s, a, m in pairs]
    difference = torch.cat(parts) if parts else torch.zeros(0)
    if not len(difference):
        raise DinaError("the weight probe has no action to compare")
    for side, rows in (("engine", sampler), ("learner", actor)):
        if any(bool(row.isnan().any()) for row in rows):
            raise DinaError(f"weight probe failed: the {side}'s log-probabilities hold NaN")
    report = ProbeReport(len(difference), float(difference.mean()), float(difference.max()))
    if report.mean > bound.mean or report.largest > bound.largest:
        raise DinaError(
            f"weight probe failed: over {report.actions} actions the engine's and the learner's log-probabilities "
            f"differ by {report.mean:.2g} on average and {report.largest:.2g} at most (allowed in {dtype}: "
            f"{bound.mean:g} and {bound.largest:g}). The engine does not compute with the learner's weights"
        )
    return report
