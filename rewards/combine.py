"""Several rewards become one number per sample. Pure functions on lists; ``None`` is "no score"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dina.errors import DinaError, advice

WEIGHTS_COLUMN = "reward_weights"
MaybeScores = Sequence[float | None]


@dataclass(frozen=True)
class Term:
    """One reward's part of the sum; every sequence has one entry per sample.

    Attributes:
        scores: what is summed: raw, clipped or normalised.
        weights: factors; where one is 0 the reward does not count, even if it failed.
        failed: where the score should be there and is not.
    """

    scores: MaybeScores
    weights: Sequence[float]
    failed: Sequence[bool]


def weighted_sum(terms: Sequence[Term]) -> list[float | None]:
    """``sum_k w_k r_k`` over the rewards that have a score.

    ``None`` where a reward that counts has failed, and where none has a score.
    """
    total: list[float | None] = []
    for row in range(len(terms[0].scores) if terms else 0):
        counting = [term for term in terms if term.weights[row] != 0]
        known = [term.weights[row] * s for term in counting if (s := term.scores[row]) is not None]
        failed = any(term.failed[row] for term in counting)
        total.append(sum(known) if known and not failed else None)
    return total


def normalise_in_groups(scores: MaybeScores, groups: Sequence[int], eps: float = 1e-4) -> list[float | None]:
    """``(r - mean) / (std + eps)`` over the scores of each group, as GDPO does before it adds rewards up.

    So a reward that spreads over 0..1 does not drown one that spreads over 0.4..0.5 (GDPO: Liu et al. 2026,
    arXiv 2601.05242; TRL's ``normalize_then_sum``). Divide the sum by its deviation over the batch afterwards
    (``algorithm.scale_rewards=batch``), as they do.

    Args:
        groups: equal for the samples of one prompt, in any order.
        eps: added to the sample deviation (n - 1). A group whose scores are all equal gives exact zeros.
    """
    members: dict[int, list[float]] = {}
    for score, group in zip(scores, groups, strict=True):
        if score is not None:
            members.setdefault(group, []).append(score)
    moments = {group: _moments(values) for group, values in members.items()}
    normalised: list[float | None] = []
    for score, group in zip(scores, groups, strict=True):
        if score is None:
            normalised.append(None)
            continue
        mean, std = moments[group]
        normalised.append(0.0 if math.isclose(std, 0.0, abs_tol=1e-12) else (score - mean) / (std + eps))
    return normalised


def clip_scores(scores: MaybeScores, low: float, high: float) -> list[float | None]:
    """Scores limited to ``low..high``."""
    return [None if score is None else min(max(score, low), high) for score in scores]


def prompt_weights(
    columns: Sequence[Mapping[str, Any]], name: str, weight: float, known: Sequence[str]
) -> list[float]:
    """The weight of reward ``name`` for each sample: ``weight``, or what the data says.

    Args:
        columns: the columns of each sample's prompt; ``reward_weights: {name: weight}`` replaces the recipe's
            weights of the rewards that it names.
        known: the names of all rewards.

    Raises:
        DinaError: the column is no mapping, names an unknown reward, or holds something that is no finite number.
    """
    return [_own_weights(row.get(WEIGHTS_COLUMN), known).get(name, weight) for row in columns]


def _own_weights(given: Any, known: Sequence[str]) -> dict[str, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise DinaError(
            f"the column {WEIGHTS_COLUMN} must be a mapping such as {{ocr: 2}}, not {given!r:.60}"
        )
    weights: dict[str, float] = {}
    for name, value in given.items():
        if value is None:  # Parquet gives every row all keys
            continue
        if name not in known:
            raise DinaError(f"the column {WEIGHTS_COLUMN} names no reward {name!r}; {advice(name, known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DinaError(
                f"the column {WEIGHTS_COLUMN} gives {name} the weight {value!r:.60}, no finite number"
            )
        weights[name] = float(value)
    return weights


def _moments(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
