"""Bootstrap intervals of benchmark scores, and what each of them resamples.

The unit of evidence is the prompt, not the picture: several samples of one prompt share its difficulty, so
they are averaged first and prompts are what gets resampled. All intervals are percentile intervals
(Efron 1979), seeded, and vectorised over the resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        mean: the estimate on the data themselves; NaN where there were none.
        low, high: bounds of the interval, in the unit of ``mean``.
        n: number of resampled units (prompts, or runs).
        level: nominal coverage.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float = LEVEL

    def excludes(self, value: float) -> bool:
        """True where the whole interval lies on one side of ``value``."""
        return self.low > value or self.high < value

    def to_json(self) -> dict[str, Any]:
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Interval:
        known: dict[str, Any] = {k: math.nan if v is None else v for k, v in data.items()}
        return cls(**known)


NO_DATA = Interval(math.nan, math.nan, math.nan, 0)


def mean_interval(
    values: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Mean of one category. Resamples the prompts.

    Args:
        values: ``[P]``, one number per prompt (the mean over its samples).
    """
    return stratified_interval({"": values}, seed=seed, resamples=resamples, level=level)


def stratified_interval(
    categories: Mapping[str, ArrayLike], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Unweighted mean of the category means (GenEval's overall score).

    Resamples prompts inside each category, so every resample has the same number of prompts per category.

    Args:
        categories: name -> ``[P]``, one number per prompt. Categories without a prompt are left out.
    """
    strata = _strata(categories)
    if not strata:
        return NO_DATA
    rng = np.random.default_rng(seed)
    draws = np.zeros(resamples)
    for values in strata:
        draws += values[_drawn(rng, resamples, len(values))].mean(1)
    estimate = _mean([_mean(values) for values in strata])
    return _percentile(estimate, draws / len(strata), sum(map(len, strata)), level)


def paired_interval(
    before: ArrayLike, after: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Mean of ``after - before``, both measured on the same prompts with the same seeds.

    Resamples prompts, each with both of its scores, so that what makes a prompt easy or hard cancels.
    """
    return paired_stratified_interval({"": before}, {"": after}, seed=seed, resamples=resamples, level=level)


def paired_stratified_interval(
    before: Mapping[str, ArrayLike],
    after: Mapping[str, ArrayLike],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Difference of two overall scores. Resamples prompts inside each category, pairs kept together."""
    differences = _differences(before, after)
    return stratified_interval(differences, seed=seed, resamples=resamples, level=level)


def two_level_interval(
    runs: Sequence[Mapping[str, ArrayLike]],
    *,
    control: Sequence[Mapping[str, ArrayLike]] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Mean over runs (training seeds) of the unweighted mean of category means.

    Resamples the runs, and independently the prompts inside each category. All runs answer the same
    prompts, so one draw of prompts serves every run of a resample (the pigeonhole bootstrap, Owen 2007);
    drawing them anew per run would hide the variation that the runs share. Resampling ``K`` runs understates
    their variance by ``(K - 1) / K``, much for three runs, so their deviations are stretched to make up for
    it (Rao and Wu 1988). One run alone says nothing about the variation of runs.

    Args:
        runs: one mapping per run, name -> ``[P]``; prompts in the same order in every run.
        control: runs of another kind on the same prompts; the interval is then of ``runs - control``, the runs
            of each kind resampled by themselves.

    Raises:
        ValueError: the runs have other categories or other numbers of prompts.
    """
    names = [name for name in (runs[0] if runs else {}) if np.size(runs[0][name])]
    if not names:
        return NO_DATA
    rng = np.random.default_rng(seed)
    arms = [(1.0, runs)] + ([(-1.0, control)] if control else [])
    drawn_runs = [_drawn(rng, resamples, len(arm)) for _, arm in arms]
    draws, estimate, count = np.zeros(resamples), 0.0, 0
    for name in names:
        stacks = [_stack_runs(arm, name) for _, arm in arms]
        prompts = _drawn(rng, resamples, stacks[0].shape[1])
        for (sign, _), scores, chosen in zip(arms, stacks, drawn_runs, strict=True):
            draws += sign * _arm_draws(scores, prompts, chosen)
            estimate += sign * _mean(scores.ravel())
        count += prompts.shape[1]
    return _percentile(estimate / len(names), draws / len(names), count, level)


def paired_two_level_interval(
    before: Mapping[str, ArrayLike] | Sequence[Mapping[str, ArrayLike]],
    after: Sequence[Mapping[str, ArrayLike]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Gain of several runs over what they started from. Resamples runs, and prompts with their pairs.

    Args:
        before: scores of the common start, or one mapping per run.
        after: one mapping per run.
    """
    starts = [before] * len(after) if isinstance(before, Mapping) else list(before)
    gains = [_differences(start, end) for start, end in zip(starts, after, strict=True)]
    return two_level_interval(gains, seed=seed, resamples=resamples, level=level)


def run_interval(means: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Student's t interval over one number per run. Nothing is resampled; exact for normal runs, wide for few."""
    from scipy.stats import t

    values = np.asarray(means, dtype=np.float64)
    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else math.nan, math.nan, math.nan, len(values))
    half = float(t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, len(values), level)


def auc_interval(
    higher: ArrayLike, lower: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Area under the ROC curve: the probability that one of ``higher`` exceeds one of ``lower``, ties counting half.

    Args:
        higher, lower: ``[P]``, the scores of two versions of the same thing, which are resampled together.
    """
    first, second = np.asarray(higher, np.float64), np.asarray(lower, np.float64)
    wins = (first[:, None] > second).astype(np.float64) + (first[:, None] == second) / 2
    n = len(first)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    draws = np.einsum("rp,rp->r", counts @ wins, counts) / n**2
    return _percentile(float(wins.mean()), draws, n, level)


def _strata(categories: Mapping[str, ArrayLike]) -> list[Floats]:
    arrays = [np.asarray(values, dtype=np.float64) for values in categories.values()]
    for name, values in zip(categories, arrays, strict=True):
        if np.isnan(values).any():
            raise ValueError(f"category {name!r} holds NaN; leave prompts without a score out")
    return [values for values in arrays if len(values)]


def _differences(before: Mapping[str, ArrayLike], after: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    if set(before) != set(after):
        raise ValueError(f"categories differ: {sorted(before)} and {sorted(after)}")
    out = {}
    for name in before:
        first, second = np.asarray(before[name], np.float64), np.asarray(after[name], np.float64)
        if first.shape != second.shape:
            raise ValueError(f"category {name!r} has {len(first)} prompts before and {len(second)} after")
        out[name] = second - first
    return out


def _arm_draws(scores: Floats, prompts: NDArray[np.int64], chosen: NDArray[np.int64]) -> Floats:
    """Means ``[R]`` of ``scores`` ``[K, P]`` over the drawn ``prompts`` ``[R, P]`` and runs ``chosen`` ``[R, K]``."""
    by_run = np.stack([run[prompts].mean(1) for run in scores])
    centre, drawn = by_run.mean(0), np.take_along_axis(by_run, chosen.T, axis=0).mean(0)
    runs = len(scores)
    return centre + (drawn - centre) * (math.sqrt(runs / (runs - 1)) if runs > 1 else 1.0)


def _stack_runs(runs: Sequence[Mapping[str, ArrayLike]], name: str) -> Floats:
    rows = [np.asarray(run.get(name, ()), dtype=np.float64) for run in runs]
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"category {name!r} has {[len(row) for row in rows]} prompts in the runs")
    return np.stack(rows)


def _mean(values: Sequence[float] | Floats) -> float:
    return math.fsum(values) / len(values)


def _drawn(rng: np.random.Generator, resamples: int, n: int) -> NDArray[np.int64]:
    """``[resamples, n]``: which of ``n`` units each resample drew, with replacement."""
    return rng.integers(0, n, size=(resamples, n))


def _percentile(estimate: float, draws: Floats, n: int, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    # Rounding of the sums must not open an interval around constant data.
    return Interval(estimate, _snap(float(low), estimate), _snap(float(high), estimate), n, level)


def _snap(value: float, estimate: float) -> float:
    return estimate if math.isclose(value, estimate, rel_tol=1e-12, abs_tol=1e-12) else value
