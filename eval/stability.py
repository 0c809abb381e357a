"""What the runs of a stability study show: when they exploded, what they lost, and the verdict in words."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from dina.eval.runs import Run, read_run, running_mean
from dina.eval.statistics import Interval, run_interval
from dina.eval.verdict import Finding

RESULT = "result.json"
"""Of a run of the study. Its presence says that the run is finished and scored; ``outcome.json`` is the loop's, which a
stopped run has too."""
BASELINE = "none"
Effect = Literal["prevents", "delays", "fails", "some"]


@dataclass
class RunSummary:
    """One run in numbers. ``first`` and ``last`` are means over the window at either end, NaN where nothing was logged.

    Attributes:
        exploded_at: step from which the run counts as exploded; ``None`` if it never does.
        mismatch: mean |Δp| over all actions and steps.
        over: share of sequences with any |Δp| above 0.1, over all steps.
        kept: share of sequences that the filters kept.
        reward_dropped, reward_kept: of the sequences that any filter dropped and kept.
        score: of the final weights, drawn without faults.
        stopped: why the run ended early; empty if it did not.
    """

    setting: str
    arm: str
    seed: int
    steps: int
    reward_first: float
    reward_best: float
    reward_last: float
    entropy_first: float
    entropy_max: float
    entropy_last: float
    grad_norm_first: float
    grad_norm_max: float
    mismatch: float
    over: float
    kept: float
    reward_dropped: float
    reward_kept: float
    score: float
    exploded_at: int | None
    stopped: str

    @property
    def gain(self) -> float:
        return self.reward_last - self.reward_first


@dataclass
class Study:
    """What was planned, and what is there.

    Attributes:
        settings, arms: name -> changes to the training recipe.
        swept: arms that belong to a sweep of one key.
        planned: (setting, arm, seed) -> the run's folder.
        runs, summaries: of those that are finished.
    """

    folder: Path
    recipe: str
    overrides: list[str]
    settings: dict[str, list[str]]
    arms: dict[str, list[str]]
    swept: list[str]
    entropy_factor: float
    grad_norm_factor: float | None
    window: int
    planned: dict[tuple[str, str, int], Path]
    runs: dict[tuple[str, str, int], Run] = field(default_factory=dict)
    summaries: list[RunSummary] = field(default_factory=list)

    @property
    def swept_keys(self) -> list[str]:
        return list(dict.fromkeys(name.partition("=")[0] for name in self.swept))

    def of(self, setting: str, arm: str) -> list[RunSummary]:
        return [s for s in self.summaries if (s.setting, s.arm) == (setting, arm)]

    def csv(self) -> str:
        """One line per finished run."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [f.name for f in fields(RunSummary)]
        writer.writerow(names)
        for summary in self.summaries:
            values = (getattr(summary, name) for name in names)
            writer.writerow(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in values])
        return text.getvalue()


def read_study(study: Study) -> Study:
    """The study with the numbers of its finished runs."""
    for key, folder in study.planned.items():
        if (folder / RESULT).is_file():
            outcome = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            study.runs[key] = run = read_run(folder)
            study.summaries.append(_summary(study, key, run, outcome.get("score"), outcome["stopped"]))
    return study


def explosion(
    entropy: Sequence[float],
    grad_norm: Sequence[float],
    window: int,
    entropy_factor: float,
    norm_factor: float | None = None,
) -> int | None:
    """The first index at which the running mean of the entropy is above its start and above ``entropy_factor`` times
    its lowest value so far, and that of the gradient norm has been above ``norm_factor`` times its own start, at this
    index or before; ``None`` if never.

    A start is the mean of the first ``window`` values. Training lowers entropy, so that a rise begins below the start.
    Without ``norm_factor``, the entropy decides alone.
    """
    if len(entropy) <= window:
        return None
    start, norm_start = _mean(entropy[:window]), _mean(grad_norm[:window])
    entropies, norms = running_mean(entropy, window), running_mean(grad_norm, window)
    surged, lowest = norm_factor is None, start
    for index in range(window, len(entropies)):
        surged = surged or norms[index] > (norm_factor or 0.0) * norm_start
        lowest = min(lowest, entropies[index])
        if surged and entropies[index] > max(start, entropy_factor * lowest):
            return index
    return None


def effect(arm: Sequence[RunSummary], baseline: Sequence[RunSummary], window: int) -> Effect | None:
    """What an arm does to an explosion: ``prevents`` it in all seeds, ``delays`` it by more than the window on
    average, ``fails``, or prevents it in ``some`` seeds. ``None`` where the baseline does not explode in most seeds.
    """
    exploded = [s.exploded_at for s in baseline if s.exploded_at is not None]
    if 2 * len(exploded) <= len(baseline) or not arm:
        return None
    own = [s.exploded_at for s in arm if s.exploded_at is not None]
    if not own:
        return "prevents"
    if len(own) < len(arm):
        return "some"
    return "delays" if _mean(own) > _mean(exploded) + window else "fails"


def findings(study: Study) -> list[Finding]:
    """The verdict, setting by setting, in sentences that carry their numbers."""
    found = []
    missing = len(study.planned) - len(study.summaries)
    if missing:
        found.append(Finding("open", f"{missing} of {len(study.planned)} runs are not there yet."))
    for setting in study.settings:
        found += _setting_findings(study, setting)
    return found


def _setting_findings(study: Study, setting: str) -> list[Finding]:
    baseline = study.of(setting, BASELINE)
    if not baseline:
        return [Finding("open", f"{setting}: no run without correction is finished, so nothing can be said.")]
    exploded = [s for s in baseline if s.exploded_at is not None]
    gain = run_interval([s.gain for s in baseline])
    control = next((name for name, changes in study.settings.items() if not changes and name != setting), "")
    unharmed = study.of(control, BASELINE)
    rises = "; ".join(
        f"{words} {_span(getattr(s, f'{name}_first') for s in baseline)}"
        f" → at most {_span(getattr(s, f'{name}_max') for s in baseline)}"
        + (f" ({control}: {_span(getattr(s, f'{name}_max') for s in unharmed)})" if unharmed else "")
        for words, name in (("entropy", "entropy"), ("gradient norm", "grad_norm"))
    )
    head = (
        f"{setting}: without correction {len(exploded)} of {len(baseline)} seeds explode "
        f"({rises}); reward {_signed(gain)} from first to last steps"
    )
    lost = run_interval(_differences(baseline, unharmed, "score"))
    head += f", score without faults {_signed(lost)} against {control}." if lost.n else "."
    kind: Literal["bad", "plain"] = "bad" if 2 * len(exploded) > len(baseline) else "plain"
    found = [Finding(kind, head)]
    for name in study.arms:
        runs = study.of(setting, name)
        if name != BASELINE and runs:
            found.append(_arm_finding(study, setting, name, runs, baseline))
    found += _recommendation(study, setting, baseline)
    return found


def _arm_finding(
    study: Study, setting: str, arm: str, runs: list[RunSummary], baseline: list[RunSummary]
) -> Finding:
    what = effect(runs, baseline, study.window)
    at = [s.exploded_at for s in runs if s.exploded_at is not None]
    count = f"{len(at)} of {len(runs)} seeds explode" + (f", from step {_mean(at):.0f}" if at else "")
    more = run_interval(_differences(runs, baseline, "reward_last"))
    reward = f"reward at the end {_signed(more)} against no correction"
    better = run_interval(_differences(runs, baseline, "score"))
    if better.n:
        reward += f", score without faults {_signed(better)}"
    kept = _mean([s.kept for s in runs])
    dropped = f"; keeps {100 * kept:.0f} % of the sequences" if kept < 0.9995 else ""
    stopped = sum(bool(s.stopped) for s in runs)
    ended = f"; {stopped} runs could not go on" if stopped else ""
    words = {
        "prevents": "prevents the explosion",
        "delays": "delays it",
        "fails": "does not prevent it",
        "some": "prevents it in some seeds only",
        None: "had no explosion to prevent",
    }[what]
    text = (
        f"{setting}, {arm}: {words} ({count}{dropped}{ended}); {reward}.{_paper(arm, study.arms[arm], what)}"
    )
    kinds: dict[Effect | None, Literal["good", "bad", "open", "plain"]] = {
        "prevents": "good", "fails": "bad", "delays": "open", "some": "open", None: "plain"
    }  # fmt: skip
    if what is None and at:
        return Finding("bad", text.replace(words, "explodes where no correction does not"))
    return Finding(kinds[what], text)


def _paper(arm: str, changes: Sequence[str], what: Effect | None) -> str:
    """Whether LongCat-Next's section 9.1 says the same: corrections delay at best, its filters prevent."""
    keys = {change.partition("=")[0] for change in changes}
    filters = keys & {"filters.entropy_k", "filters.mismatch_tau"}
    corrections = "correction.mode" in keys or "algorithm.importance_sampling_level" in keys
    if what is None or bool(filters) == corrections:
        return ""
    agrees = (what == "prevents") if filters else (what != "prevents")
    said = "its filters prevent it" if filters else "such corrections at best delay it"
    return f" This {'agrees with' if agrees else 'contradicts'} the paper, where {said}."


def _recommendation(study: Study, setting: str, baseline: list[RunSummary]) -> list[Finding]:
    """Of every swept key, the value that prevents the explosion in all seeds and ends best.

    Arms that set this key alone count as further values of it.
    """
    found = []
    for key in study.swept_keys:
        single = {c[0].partition("=")[2]: name for name, c in study.arms.items() if sets_alone(c, key)}
        arms = {value: study.of(setting, name) for value, name in single.items() if study.of(setting, name)}
        effects = {value: effect(runs, baseline, study.window) for value, runs in arms.items()}
        if not arms or None in effects.values():
            continue
        good = {value: _merit(arms[value]) for value, what in effects.items() if what == "prevents"}
        if not good:
            text = f"{setting}: no {key} among {', '.join(arms)} prevents the explosion in all seeds."
            found.append(Finding("bad", text))
            continue
        best = max(good, key=lambda value: good[value])
        others = ", ".join(f"{value}: {merit:.3f}" for value, merit in good.items() if value != best)
        text = (
            f"{setting}: of the values that prevent it in all seeds, {key}={best} ends best ({good[best]:.3f}"
        )
        found.append(Finding("good", text + (f"; {others})." if others else ").")))
    return found


def sets_alone(changes: Sequence[str], key: str) -> bool:
    """Whether an arm changes ``key`` and nothing else, so that it is one more value of a sweep of it."""
    return len(changes) == 1 and changes[0].startswith(f"{key}=")


def _merit(runs: Iterable[RunSummary]) -> float:
    """Mean score of the final weights; the reward of the last steps where nothing was scored."""
    values = list(runs)
    scored = [s.score for s in values if not math.isnan(s.score)]
    return _mean(scored or [s.reward_last for s in values])


def _summary(
    study: Study, key: tuple[str, str, int], run: Run, score: float | None, stopped: str
) -> RunSummary:
    def series(name: str) -> list[float]:
        """A value per step, NaN where the step has none: a step that learns nothing has no gradient norm."""
        return [row.get(name, math.nan) for row in run.metrics]

    window = study.window
    reward, entropy, norm = series("reward"), series("entropy"), series("grad_norm")
    at = explosion(entropy, norm, window, study.entropy_factor, study.grad_norm_factor)
    smooth = {name: running_mean(values, window)[window - 1 :] for name, values in
              (("reward", reward), ("entropy", entropy), ("norm", norm))}  # fmt: skip
    return RunSummary(
        *key,
        steps=len(run.metrics),
        reward_first=_mean(reward[:window]),
        reward_best=_most(smooth["reward"]),
        reward_last=_mean(reward[-window:]),
        entropy_first=_mean(entropy[:window]),
        entropy_max=_most(smooth["entropy"]),
        entropy_last=_mean(entropy[-window:]),
        grad_norm_first=_mean(norm[:window]),
        grad_norm_max=_most(smooth["norm"]),
        mismatch=_mean(series("mismatch/mean_prob_diff")),
        over=_mean(series("mismatch/frac_over_0.1")),
        kept=_mean(series("filter/kept")),
        reward_dropped=_mean(
            series("filter/entropy/reward_dropped") + series("filter/mismatch/reward_dropped")
        ),
        reward_kept=_mean(series("filter/entropy/reward_kept") + series("filter/mismatch/reward_kept")),
        score=math.nan if score is None else score,
        exploded_at=None if at is None else int(run.metrics[at]["step"]),
        stopped=stopped,
    )


def _differences(
    runs: Iterable[RunSummary], baseline: Iterable[RunSummary], name: Literal["reward_last", "score"]
) -> list[float]:
    """The number minus that of the baseline with the same seed, of the runs where both have it."""
    known: Mapping[int, float] = {s.seed: getattr(s, name) for s in baseline}
    found = [getattr(s, name) - known[s.seed] for s in runs if s.seed in known]
    return [value for value in found if not math.isnan(value)]


def _mean(values: Iterable[float]) -> float:
    real = [value for value in values if math.isfinite(value)]
    return sum(real) / len(real) if real else math.nan


def _most(values: Sequence[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def _span(values: Iterable[float]) -> str:
    return f"{_mean(values):.3g}"


def _signed(interval: Interval) -> str:
    """A difference of rewards with its interval over seeds, where there are several."""
    mean = f"{interval.mean:+.3f}"
    return mean if math.isnan(interval.low) else f"{mean} [{interval.low:+.3f}, {interval.high:+.3f}]"
