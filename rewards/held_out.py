"""Notices a policy that games its rewards: what it is trained on rises, what is only watched falls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STEPS = 20
SURE = 2.0


@dataclass(frozen=True)
class Divergence:
    """A trained reward and the held-out one that went the other way; changes of their means in score units."""

    trained: str
    held_out: str
    rise: float
    fall: float
    steps: int

    def __str__(self) -> str:
        return (
            f"reward {self.trained!r} rose by {self.rise:.3g} over the last {self.steps} steps while the held-out "
            f"{self.held_out!r} fell by {self.fall:.3g}: the policy may be gaming {self.trained!r}; look at the samples"
        )


def divergences(
    history: Sequence[Mapping[str, float]],
    pairs: Sequence[tuple[str, str]],
    steps: int = STEPS,
    sure: float = SURE,
) -> list[Divergence]:
    """The pairs whose trained reward rises while the held-out one falls.

    The mean of the first half of the last ``steps`` entries is compared with that of the second half. A change
    counts if it exceeds ``sure`` standard errors of that difference, steps taken as independent.

    Args:
        history: metrics by step, oldest first, with ``rewards/<name>/mean``; entries without it are passed over.
        pairs: (trained, held-out) names.
        steps: how far to look back; nothing is said before so many steps have a score of both.
    """
    found = []
    for trained, held_out in pairs:
        rise = _change(history, trained, steps, sure)
        fall = _change(history, held_out, steps, sure)
        if rise > 0 > fall:
            found.append(Divergence(trained, held_out, rise, -fall, steps))
    return found


@dataclass
class HeldOutWatch:
    """Keeps the recent metrics of a run and speaks once when a pair begins to diverge."""

    pairs: Sequence[tuple[str, str]]
    steps: int = STEPS
    _history: list[Mapping[str, float]] = field(default_factory=list)
    _said: set[tuple[str, str]] = field(default_factory=set)

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """What to say after a step with these metrics."""
        if not self.pairs:
            return []
        names = {f"rewards/{name}/mean" for pair in self.pairs for name in pair}
        self._history.append({name: value for name, value in metrics.items() if name in names})
        # A reward that applies to some prompts only has no mean in some steps.
        del self._history[: -4 * self.steps]
        found = divergences(self._history, self.pairs, self.steps)
        fresh = [str(entry) for entry in found if (entry.trained, entry.held_out) not in self._said]
        self._said = {(entry.trained, entry.held_out) for entry in found}
        return fresh


def _change(history: Sequence[Mapping[str, float]], name: str, steps: int, sure: float) -> float:
    """Second half minus first half of the last ``steps`` means; 0 where that is too little to be sure of."""
    key = f"rewards/{name}/mean"
    values = [entry[key] for entry in history if key in entry and math.isfinite(entry[key])][-steps:]
    half = steps // 2
    if len(values) < steps or half < 2:
        return 0.0
    (before, error_before), (after, error_after) = _mean_error(values[:half]), _mean_error(values[-half:])
    change = after - before
    return change if abs(change) > sure * math.hypot(error_before, error_after) else 0.0


def _mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
