"""What the parts of the report page show, as plain rows: picture pairs, guards, variety, losses, samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dina.eval.compare import Comparison
from dina.eval.pictures import COLOURS, Picture, PictureStats, data_uri
from dina.eval.result import BenchmarkResult, Row
from dina.eval.runs import Run
from dina.eval.sample_log import SampleIndex, SampleRecord
from dina.eval.tables import number
from dina.eval.verdict import percent, title

FILM_STEPS = 6
FILM_SAMPLES = 8


@dataclass(frozen=True)
class Side:
    """One half of a picture pair: the sample as the page shows it."""

    name: str
    image: str | None
    pixels: bool
    badge: str
    kind: str
    text: str


@dataclass(frozen=True)
class Pair:
    prompt: str
    expected: str | None
    seed: int
    question: bool
    sides: list[Side]


@dataclass(frozen=True)
class PairGroup:
    name: str
    total: int
    pairs: list[Pair]


def pair_groups(results: Sequence[BenchmarkResult], per_category: int) -> list[PairGroup]:
    """The first prompts of every category, each with its first sample of every result."""
    if not results:
        return []
    names = ["before", "after"] if len(results) == 2 else [""]
    lookups = [{row.sample: row for row in result.rows} for result in results]
    groups = []
    for tag in results[0].tags:
        first = [row for row in results[0].rows if row.tag == tag and row.index == 0]
        pairs = []
        for row in first[:per_category]:
            sides = [look.get(row.sample) for look in lookups]
            shown = [_side(name, side) for name, side in zip(names, sides, strict=True) if side is not None]
            pairs.append(Pair(row.prompt, row.expected, row.seed, row.task == "vqa", shown))
        groups.append(PairGroup(title(tag), len(first), pairs))
    return groups


def _side(name: str, row: Row) -> Side:
    if row.score is None:
        badge, kind = "not scored", "open"
    elif row.score in (0.0, 1.0):
        badge, kind = ("right", "good") if row.score else ("wrong", "bad")
    else:
        badge, kind = percent(row.score, 0), "open"
    image = data_uri(row.image) if row.image is not None else None
    small = row.image is not None and max(row.image.shape[:2]) <= 128
    text = row.failure or row.reason
    if row.task == "vqa":
        text = f"“{row.answer}”" if row.answer is not None else text
    return Side(name, image, small, badge, kind, text)


def guard_rows(comparison: Comparison | None, results: Sequence[BenchmarkResult]) -> list[dict[str, str]]:
    if comparison:
        return [
            {
                "name": name.replace("_", " "),
                "before": number(score.before.mean),
                "after": number(score.after.mean),
                "difference": number(score.difference.mean),
                "range": f"[{number(score.difference.low)}, {number(score.difference.high)}]",
                "remark": "clear" if score.clear else "within chance",
            }
            for name, score in comparison.guards.items()
        ]
    rows = []
    for result in results:
        for name in result.guard_names:
            values = list(result.prompt_means(key=f"guards/{name}").values())
            rows.append(
                {
                    "name": name.replace("_", " "),
                    "before": number(sum(values) / len(values)) if values else "–",
                }
            )
    return rows


def variety_rows(
    comparison: Comparison | None, results: Sequence[BenchmarkResult]
) -> list[tuple[str, list[str], str]]:
    """(statistic, value per result, remark)."""
    if not results:
        return []
    stats = [result.pictures for result in results]
    rows = [
        ("distinct pictures / pictures", [_two(s.unique_ratio) for s in stats], ""),
        ("the same, within one prompt", [_two(s.unique_per_prompt) for s in stats], ""),
        ("mean difference of two within one prompt", [_two(s.diversity, 3) for s in stats], ""),
    ]
    if comparison:
        rows[0] = (rows[0][0], rows[0][1], f"{_two(comparison.unique_ratio_kept)} of before")
        rows.append(
            ("similarity of the colour histograms", ["", _two(comparison.colour_similarity)], "1 = the same")
        )
    return [row for row in rows if any(value not in ("", "–") for value in row[1])]


def colour_bar(stats: PictureStats) -> list[tuple[str, str, str]]:
    """(name, CSS colour, share in per cent) of the colours that occur."""
    return [
        (name, "rgb({}, {}, {})".format(*COLOURS[name]), f"{100 * share:.1f}")
        for name, share in stats.colours.items()
        if share > 0.002 and name in COLOURS
    ]


def failures(results: Sequence[BenchmarkResult]) -> list[tuple[str, str, int]]:
    found = []
    for result in results:
        reasons = Counter(str(row.failure) for row in result.failures)
        found += [(result.name, reason, count) for reason, count in reasons.most_common()]
    return found


def dropped(run: Run) -> list[tuple[str, str, str]]:
    """(what, how much, why) of everything that did not reach an update."""
    rows = []
    whys = {
        "entropy": "mean entropy above the minibatch's mean + k standard deviations",
        "mismatch": "an action whose probability differs by more than τ between sampler and trainer",
    }
    for name, why in whys.items():
        _, dropped = run.series(f"filter/{name}/dropped")
        values = [value for value in dropped if math.isfinite(value)]
        if values:
            text = f"{100 * sum(values) / len(values):.2f} % of sequences"
            hit = sum(value > 0 for value in values)
            rows.append((f"{name} filter", f"{text}, in {hit} of {len(values)} steps", why))
    for name in run.names:
        if name.startswith("rewards/") and name.endswith("/fail_rate"):
            values = [value for value in run.series(name)[1] if math.isfinite(value)]
            share = sum(values) / max(len(values), 1)
            rows.append(
                (
                    f"failed {name.split('/')[1]} scores",
                    f"{100 * share:.2f} % of samples",
                    "an exception, a time-out or no number; left out of training",
                )
            )
    skipped = sum(value for value in run.series("updates/skipped")[1] if math.isfinite(value))
    if skipped:
        rows.append(
            ("updates", f"{skipped:g} minibatches", "every sequence was left out, so no step was taken")
        )
    return rows


def film(samples: SampleIndex) -> list[tuple[int, list[dict[str, Any]]]]:
    """Evenly spread steps, each with its first pictures."""
    steps = samples.steps().tolist()
    if len(steps) > FILM_STEPS:
        steps = [steps[round(i * (len(steps) - 1) / (FILM_STEPS - 1))] for i in range(FILM_STEPS)]
    film = []
    for step in steps:
        records = samples.read(samples.select(steps=(step, step), pictures=True)[:FILM_SAMPLES])
        frames = [(record, samples.picture(record.picture)) for record in records]
        film.append((step, [_frame(record, image) for record, image in frames if image is not None]))
    return film


def _frame(record: SampleRecord, image: Picture) -> dict[str, Any]:
    return {
        "image": data_uri(image),
        "pixels": max(image.shape[:2]) <= 128,
        "prompt": record.prompt,
        "reward": "not scored" if record.reward is None else number(record.reward),
        "reason": record.reason,
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            rows += flat(value, name)
        else:
            rows.append((name, "–" if value is None else str(value)))
    return rows


def metric_rows(run: Run) -> list[tuple[str, list[str], int]]:
    """(name, [first, last, least, most], number of values that were not finite)."""
    rows = []
    for name in run.names:
        values = run.series(name)[1]
        real = [value for value in values if math.isfinite(value)]
        if real:
            shown = [number(v) for v in (real[0], real[-1], min(real), max(real))]
        else:
            shown = ["–"] * 4
        rows.append((name, shown, len(values) - len(real)))
    return rows


def _two(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
