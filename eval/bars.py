"""Bars as HTML and inline SVG: shares with intervals, paired differences, and how a whole is divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dina.eval.statistics import Interval


@dataclass(frozen=True)
class Bar:
    name: str
    score: Interval
    color: str


def stacked_bar(parts: Sequence[tuple[str, float, str]], unit: str = "s") -> Markup:
    """One bar of (name, size, CSS colour) parts with a legend that has their sizes and shares."""
    parts = [(name, size, color) for name, size, color in parts if size > 0]
    total = sum(size for _, size, _ in parts)
    if not total:
        return Markup("")
    pieces = Markup("").join(
        Markup('<span style="flex-grow:{:.4f};background:{}" title="{}"></span>').format(
            size / total, color, name
        )
        for name, size, color in parts
    )
    items = Markup("").join(
        Markup('<li><span class="swatch" style="background:{}"></span>{} <b>{} {}</b> {:.0f} %</li>').format(
            color, name, f"{size:.3g}", unit, 100 * size / total
        )
        for name, size, color in parts
    )
    return Markup(
        '<div class="stack"><div class="stack-bar">{}</div><ul class="legend">{}</ul></div>'
    ).format(pieces, items)


def interval_bars(rows: Sequence[tuple[str, Sequence[Bar]]], top: float = 1.0) -> Markup:
    """Horizontal bars of shares in 0..``top``, grouped by row, each with its interval as a whisker."""
    body = [
        Markup(
            '<div class="bars-row"><div class="bars-name">{}</div><div class="bars-set">{}</div></div>'
        ).format(name, Markup("").join(_bar(bar, top) for bar in bars))
        for name, bars in rows
    ]
    ticks = Markup("").join(
        Markup('<span style="left:{:.1f}%">{}</span>').format(100 * i / 4, f"{100 * top * i / 4:g}")
        for i in range(5)
    )
    axis = Markup(
        '<div class="bars-row bars-axis" aria-hidden="true"><div></div><div class="bars-scale">{}</div></div>'
    )
    return Markup('<div class="bars">{}{}</div>').format(Markup("").join(body), axis.format(ticks))


def difference_track(score: Interval, reach: float) -> Markup:
    """A dot with its interval on an axis from -``reach`` to +``reach``, 0 in the middle; coloured if it excludes 0."""
    if math.isnan(score.mean):
        return Markup("")

    def place(value: float) -> str:
        return f"{50 + 50 * max(-1.0, min(1.0, value / reach)):.2f}%"

    state = ("good" if score.mean > 0 else "bad") if score.excludes(0.0) else "open"
    return Markup(
        '<svg class="track {state}" width="100%" height="16" aria-hidden="true">'
        '<line class="zero" x1="50%" x2="50%" y1="0" y2="16"/>'
        '<line class="span" x1="{low}" x2="{high}" y1="8" y2="8"/><circle cx="{mean}" cy="8" r="4"/></svg>'
    ).format(state=state, low=place(score.low), high=place(score.high), mean=place(score.mean))


def _bar(bar: Bar, top: float) -> Markup:
    score = bar.score
    if math.isnan(score.mean):
        return Markup("")
    low, high = (max(0.0, min(1.0, value / top)) * 100 for value in (score.low, score.high))
    return Markup(
        '<div class="bar"><svg width="100%" height="14" role="img" aria-label="{name}: {text}">'
        '<rect x="0" y="2" width="{mean:.2f}%" height="10" rx="2" style="fill:{color}"/>'
        '<line class="halo" x1="{low:.2f}%" x2="{high:.2f}%" y1="7" y2="7"/>'
        '<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="7" y2="7"/>'
        '<line class="whisker" x1="{low:.2f}%" x2="{low:.2f}%" y1="4" y2="10"/>'
        '<line class="whisker" x1="{high:.2f}%" x2="{high:.2f}%" y1="4" y2="10"/></svg>'
        '<span class="bar-value" title="{name}: {text}">{short}</span></div>'
    ).format(
        name=bar.name,
        text=f"{100 * score.mean:.1f}, 95 % interval {100 * score.low:.1f} to {100 * score.high:.1f}",
        mean=max(0.0, min(1.0, score.mean / top)) * 100,
        color=bar.color,
        low=low,
        high=high,
        short=f"{100 * score.mean:.1f}",
    )
