"""Every metric that a run writes: what it means, over what it is taken, and what is healthy.

The table is ``metrics.yaml``, the one source of names and words for ``docs/metrics.md``, the dashboard, the report
and W&B. ``python -m dina.eval.metric_table docs/metrics.md`` writes the page anew.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

FILE = Path(__file__).with_name("metrics.yaml")
Page = Literal["overview", "stability", "speed"]

_PLACE = re.compile(r"<(\w+)>")
# A level is a number; a part of a reward may have slashes of its own.
_PATTERNS = {"level": r"\d+", "part": r".+"}


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: as in ``metrics.jsonl``, with places such as ``<level>`` for what varies.
        meaning: in words.
        over: what the mean (or sum, or extreme) is taken over: the denominator.
        unit: of the value; empty for plain numbers.
        healthy: what to expect of a run that is well, in words.
        low, high: the same as limits, where numbers can say it.
        label: what a line of a chart is called, with the same places; by default the name's last part.
        better: which direction is progress, if one is.
    """

    name: str
    meaning: str
    over: str
    unit: str = ""
    healthy: str = "no range of its own"
    low: float | None = None
    high: float | None = None
    label: str = ""
    better: Literal["", "higher", "lower"] = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the names that this row is about; the places are its groups."""
        parts = _PLACE.split(self.name)
        text = "".join(
            f"(?P<{part}>{_PATTERNS.get(part, '[^/]+')})" if number % 2 else re.escape(part)
            for number, part in enumerate(parts)
        )
        return re.compile(text)

    @property
    def places(self) -> list[str]:
        return _PLACE.findall(self.name)

    def values(self, name: str) -> list[str]:
        """What stands in the places of ``name``, one of this row's."""
        found = self.pattern.fullmatch(name)
        assert found, f"{name} is not {self.name}"
        return list(found.groups())

    def title(self, name: str) -> str:
        """What to call ``name``, one of this row's, in the legend of a chart."""
        values = dict(zip(self.places, self.values(name), strict=True))
        label = self.label or self.name.rsplit("/", 1)[-1].replace("_", " ")
        return _PLACE.sub(lambda place: values[place[1]], label)


@dataclass(frozen=True)
class MetricSection:
    """Metrics that answer one question.

    Attributes:
        key: part of addresses.
        page: of the dashboard.
    """

    key: str
    title: str
    page: Page
    intro: str
    metrics: tuple[Metric, ...] = field(repr=False)

    @property
    def anchor(self) -> str:
        """Of its heading in ``docs/metrics.md``."""
        return re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")


@cache
def sections() -> tuple[MetricSection, ...]:
    """The table, in the order of the file."""
    return tuple(_section(key, entry) for key, entry in yaml.safe_load(FILE.read_text("utf-8")).items())


def row(name: str) -> Metric:
    """The row of this very name, places and all.

    Raises:
        KeyError: there is none.
    """
    return _rows()[name]


@lru_cache(maxsize=4096)
def find(name: str) -> Metric | None:
    """The row that is about ``name``; of several, the one with the fewest places."""
    rows = [metric for metric in _rows().values() if metric.pattern.fullmatch(name)]
    return min(rows, key=lambda metric: len(metric.places), default=None)


def named(pattern: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that the row ``pattern`` is about; levels and the like in the order of their numbers."""
    metric = row(pattern)
    found = [name for name in names if find(name) is metric]
    return sorted(found, key=lambda name: [_place(text) for text in metric.values(name)])


def undescribed(names: Iterable[str]) -> list[str]:
    """Names that have no row, ``step`` aside."""
    return sorted(name for name in set(names) - {"step"} if find(name) is None)


def markdown() -> str:
    """``docs/metrics.md``."""
    return "\n".join(_page()) + "\n"


@cache
def _rows() -> dict[str, Metric]:
    return {metric.name: metric for section in sections() for metric in section.metrics}


def _section(key: str, entry: Mapping[str, Any]) -> MetricSection:
    metrics = tuple(Metric(name, **row) for name, row in entry["metrics"].items())
    return MetricSection(key, entry["title"], entry["page"], entry["intro"], metrics)


def _place(text: str) -> float:
    """Numbers in their order; words all alike, so that they stay in theirs."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def _page() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield "<!-- Written by `make docs` from eval/metrics.yaml, which the dashboard, the report and W&B read too. -->"
    yield ""
    yield "Every name in a run's `metrics.jsonl`, with its denominator and what to expect of a run that is well. Names"
    yield "are TRL's wherever the meaning is the same. Sums and counts are merged, never means, so the numbers do not"
    yield "depend on how a minibatch was cut into micro-batches. A name that nothing was counted for is absent; a"
    yield "value that is no finite number is `null`. [The method](method.md) defines the symbols,"
    yield "[the dashboard](dashboard.md) draws the curves."
    for section in sections():
        yield from ("", f"## {section.title}", "", section.intro, "")
        yield from ("| name | meaning | over | unit | healthy |", "|---|---|---|---|---|")
        for metric in section.metrics:
            cells = (f"`{metric.name}`", metric.meaning, metric.over, metric.unit or "–", metric.healthy)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
