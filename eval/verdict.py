"""What a comparison or a run shows, in sentences that carry their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dina.eval.alerts import replay
from dina.eval.compare import Comparison, PairedScore
from dina.eval.result import SIX, BenchmarkResult
from dina.eval.runs import Run
from dina.eval.statistics import Interval

COLLAPSE_LIMIT = 0.9
RETENTION_POINTS = 2.0

Kind = Literal["good", "bad", "open", "plain"]

TITLES = {
    "single_object": "Single object",
    "two_object": "Two objects",
    "counting": "Counting",
    "colors": "Colours",
    "position": "Position",
    "color_attr": "Colour attribution",
    "text_rendering": "Text rendering",
    "vqa": "Question answering",
    "description": "Descriptions",
    "t2i": "Pictures",
}


@dataclass(frozen=True)
class Finding:
    """One sentence. ``open`` means that the data do not decide it."""

    kind: Kind
    text: str


def title(tag: str) -> str:
    """A category's name for people."""
    return TITLES.get(tag) or tag.replace("_", " ").capitalize()


def mean_name(tags: Sequence[str]) -> str:
    """What the overall score is called, given the categories that it averages."""
    return "Mean of the six" if set(tags) == set(SIX) else f"Mean of {len(tags)}"


def percent(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A difference of shares, in signed percentage points."""
    if math.isnan(value):
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def points_range(interval: Interval) -> str:
    return f"[{points(interval.low)}, {points(interval.high)}]"


def percent_range(interval: Interval) -> str:
    return f"[{percent(interval.low)}, {percent(interval.high)}]"


def comparison_findings(comparison: Comparison) -> list[Finding]:
    """Headline first: the overall score, then text, understanding, mode collapse, and what failed."""
    findings = [_overall(comparison)]
    if "text_rendering" in comparison.categories:
        findings.append(_change("Text rendering (read exactly)", comparison.categories["text_rendering"]))
    findings += [_retention(tag, comparison.categories[tag]) for tag in _answered(comparison)]
    findings += _collapse(comparison)
    failed = len(comparison.before.failures), len(comparison.after.failures)
    if any(failed):
        findings.append(
            Finding(
                "bad",
                f"{failed[0]} scores before and {failed[1]} after could not be measured; they are left out.",
            )
        )
    return findings


def result_findings(result: BenchmarkResult) -> list[Finding]:
    """What one evaluation shows by itself."""
    findings = []
    if result.averaged:
        overall = result.overall
        findings.append(
            Finding(
                "plain",
                f"{result.label}: {percent(overall.mean)} {percent_range(overall)} "
                f"{_mean_of(result.averaged)}, over {overall.n} prompts.",
            )
        )
    for tag in result.tags:
        if tag not in result.averaged:
            score = result.category(tag)
            text = f"{title(tag)}: {percent(score.mean)} {percent_range(score)} over {score.n} prompts."
            findings.append(Finding("plain", text))
    if result.failures:
        findings.append(
            Finding("bad", f"{len(result.failures)} samples could not be scored; they are left out.")
        )
    return findings


def _overall(comparison: Comparison) -> Finding:
    score = comparison.overall
    if not score.difference.n:
        return Finding("plain", "The prompts hold no category of drawings with an overall score.")
    numbers = (
        f"from {percent(score.before.mean)} to {percent(score.after.mean)}, {points(score.difference.mean)} points "
        f"{points_range(score.difference)} {_mean_of(comparison.averaged)}, over {score.difference.n} paired prompts"
    )
    if not score.clear:
        return Finding("open", f"No clear change of the {comparison.before.label} score: {numbers}.")
    verb = "rose" if score.difference.mean > 0 else "fell"
    return Finding(
        "good" if score.difference.mean > 0 else "bad",
        f"The {comparison.before.label} score {verb} {numbers}.",
    )


def _mean_of(tags: list[str]) -> str:
    if not set(tags) <= set(SIX):
        return "(one category)" if len(tags) == 1 else f"(mean of {len(tags)} categories)"
    if len(tags) == len(SIX):
        return "(mean of the six categories)"
    return f"(mean of {len(tags)} of six categories)"


def _change(name: str, score: PairedScore) -> Finding:
    numbers = f"{percent(score.before.mean)} to {percent(score.after.mean)}, {_with_range(score)}"
    if not score.clear:
        return Finding("open", f"{name}: no clear change, {numbers}.")
    better = score.difference.mean > 0
    return Finding("good" if better else "bad", f"{name} {'improved' if better else 'got worse'}: {numbers}.")


def _answered(comparison: Comparison) -> list[str]:
    """The categories of questions."""
    asked = {row.tag for row in comparison.before.rows if row.task == "vqa"}
    return [tag for tag in comparison.categories if tag in asked]


def _retention(tag: str, score: PairedScore) -> Finding:
    """Within two points counts only where the interval says so; a point estimate alone stays open."""
    name = "Understanding" if tag == "vqa" else f"Understanding ({title(tag).lower()})"
    numbers = f"{percent(score.before.mean)} to {percent(score.after.mean)}, {_with_range(score)}"
    low, high = 100 * score.difference.low, 100 * score.difference.high
    if low > 0:
        return Finding("good", f"{name} improved: {numbers}.")
    if low >= -RETENTION_POINTS:
        return Finding("good", f"{name} is kept: {numbers}.")
    if high < -RETENTION_POINTS:
        return Finding("bad", f"{name} was lost: {numbers}.")
    if 100 * score.difference.mean >= -RETENTION_POINTS:
        return Finding(
            "open", f"{name}: {numbers}; within 2 points, though the interval allows a larger loss."
        )
    return Finding("bad", f"{name} fell by more than 2 points, though the interval is wide: {numbers}.")


def _with_range(score: PairedScore) -> str:
    return f"{points(score.difference.mean)} points {points_range(score.difference)}"


def _collapse(comparison: Comparison) -> list[Finding]:
    kept, colours = comparison.unique_ratio_kept, comparison.colour_similarity
    measured = [value for value in (kept, colours) if not math.isnan(value)]
    if not measured:
        return []
    numbers = f"unique pictures {_two(kept)} of before, colour histogram similarity {_two(colours)}"
    if min(measured) >= COLLAPSE_LIMIT:
        return [Finding("good", f"No sign of mode collapse: {numbers}.")]
    return [Finding("bad", f"Pictures became less varied: {numbers} (at least {COLLAPSE_LIMIT} is healthy).")]


def _two(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def run_findings(run: Run) -> list[Finding]:
    """What the training metrics show by themselves; training reward is named as such."""
    if not run.metrics:
        return [Finding("bad", "The run has logged no step.")]
    findings = []
    rewards = [value for value in run.series("reward")[1] if not math.isnan(value)]
    if len(rewards) == 1:
        findings.append(
            Finding("plain", f"Reward of the training prompts: {rewards[0]:.3f} in the only step.")
        )
    elif rewards:
        window = max(1, len(rewards) // 10)
        first, last = (sum(part) / window for part in (rewards[:window], rewards[-window:]))
        span = f"first and last {window} of {len(rewards)} steps" if window > 1 else f"{len(rewards)} steps"
        findings.append(
            Finding("plain", f"Reward of the training prompts: {first:.3f} to {last:.3f} ({span}).")
        )
    broken = [name for name in run.names if any(map(math.isnan, run.series(name)[1]))]
    if broken:
        steps = sorted({int(r["step"]) for r in run.metrics if any(math.isnan(v) for v in r.values())})
        shown = ", ".join(map(str, steps[:8])) + (" …" if len(steps) > 8 else "")
        findings.append(Finding("bad", f"Not finite in step {shown}: {', '.join(broken[:6])}."))
    gamed = [alert for alert in replay(run).alerts if alert.rule.kind == "diverges"]
    return findings + [Finding("bad", f"Step {alert.since}: {alert.text}.") for alert in gamed]
