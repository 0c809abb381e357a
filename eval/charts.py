"""Charts as HTML and inline SVG, without a library: lines with bands, and heat maps. ``bars`` has the bars.

Marks are drawn in an SVG that stretches with the page; words and numbers are HTML beside it, so they keep
their size on a phone. Colours are CSS variables of the report's style sheet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

SIZE = 1000  # units of the stretched drawing area, in both directions
X_LABEL = "training step"


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        y: values at ``x``; NaN leaves a gap.
        color: a CSS colour, usually ``var(--…)``.
        faint: unsmoothed values, drawn thin behind ``y``.
        band: (low, high) at ``x``, filled behind ``y``.
        dash: an SVG dash pattern.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    faint: Sequence[float] | None = None
    band: tuple[Sequence[float], Sequence[float]] | None = None
    dash: str = ""


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    note: str = "",
    percent: bool = False,
    log: bool = False,
    zero: bool = False,
    top: float | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    marks: Sequence[float] = (),
    x_label: str = X_LABEL,
) -> Markup:
    """A figure with title, legend, axes and a read-out under the pointer; empty where no line has a value.

    Args:
        unit: what the vertical axis counts.
        note: one sentence under the title.
        percent: values are shares, shown as percentages.
        log: logarithmic vertical axis; values at or below 0 lie on its lower edge.
        zero: the vertical axis includes 0.
        top: the vertical axis includes this value.
        limits: ends of the healthy range, drawn where the axis reaches them.
        marks: places on the horizontal axis to point at.
    """
    lines = [line for line in lines if any(map(math.isfinite, line.y))]
    if not lines:
        return Markup("")
    xs = sorted({x for line in lines for x in line.x})
    across = _across(xs)
    up, ticks = _vertical(lines, log, zero, top, 0.01 if percent else 1.0)
    drawing = Markup("").join(
        [
            _grid(up, ticks),
            *(_level_line(up, limit) for limit in limits if limit is not None),
            *(_upright(across, mark) for mark in marks if xs[0] <= mark <= xs[-1]),
            *(_band(line, across, up) for line in lines),
            *(_path(line, across, up) for line in lines),
        ]
    )
    return _figure(
        head=_head(title, unit, note),
        legend=_legend(lines) if len(lines) > 1 or lines[0].faint else Markup(""),
        label=f"{title}: {', '.join(line.name for line in lines)} against {x_label}",
        data=_hover(lines, xs, across, percent, x_label),
        drawing=drawing,
        y_labels=[
            (up.place(t) / 10, text) for t, text in zip(ticks, _tick_texts(ticks, percent), strict=True)
        ],
        x_axis=_x_axis(xs, across, x_label),
    )


def heat_map(
    title: str,
    rows: Sequence[Line],
    *,
    unit: str = "",
    note: str = "",
    x_label: str = X_LABEL,
) -> Markup:
    """A figure of shares in 0..1, one band per row from the bottom up, darker where the share is larger.

    Args:
        rows: all with the same ``x``; the colour and the rest of a line are not used.
    """
    if not rows or not rows[0].x:
        return Markup("")
    xs = list(rows[0].x)
    edges, height = _edges(xs), SIZE / len(rows)
    across = _Scale(edges[0], edges[-1])
    cells = [
        Markup('<rect x="{:.1f}" width="{:.1f}" y="{:.1f}" height="{:.1f}" style="opacity:{:.3f}"/>').format(
            across.place(edges[column]),
            across.place(edges[column + 1]) - across.place(edges[column]),
            SIZE - (number + 1) * height,
            height,
            math.sqrt(min(value, 1.0)),
        )
        for number, row in enumerate(rows)
        for column, value in enumerate(row.y)
        if value > 0
    ]
    return _figure(
        head=_head(title, unit, note),
        legend=Markup(""),
        label=f"{title}: {', '.join(row.name for row in rows)} against {x_label}",
        data=_hover([row for row in reversed(rows)], xs, across, True, x_label),
        drawing=Markup('<g class="heat">{}</g>').format(Markup("").join(cells)),
        y_labels=[((number + 0.5) * height / 10, row.name) for number, row in enumerate(rows)],
        x_axis=_x_axis(xs, across, x_label),
    )


def _figure(
    *,
    head: Markup,
    legend: Markup,
    label: str,
    data: dict[str, object],
    drawing: Markup,
    y_labels: Sequence[tuple[float, str]],
    x_axis: Markup,
) -> Markup:
    return Markup(
        '<figure class="chart" data-chart="{data}">{head}{legend}<div class="plot">'
        '<div class="y-axis" aria-hidden="true">{y_axis}</div>'
        '<div class="area"><svg viewBox="0 0 {size} {size}" preserveAspectRatio="none" role="img" '
        'aria-label="{label}">{drawing}</svg><div class="rule" hidden></div><div class="tip" hidden></div></div>'
        '<div class="x-axis" aria-hidden="true">{x_axis}</div></div></figure>'
    ).format(
        data=json.dumps(data),
        head=head,
        legend=legend,
        y_axis=Markup("").join(
            Markup('<span style="bottom:{:.2f}%">{}</span>').format(place, text) for place, text in y_labels
        ),
        size=SIZE,
        label=label,
        drawing=drawing,
        x_axis=x_axis,
    )


class _Scale:
    """Maps [low, high] to 0..SIZE, linearly or in the logarithm."""

    def __init__(self, low: float, high: float, log: bool = False) -> None:
        self.low, self.high, self.log = low, high, log

    def place(self, value: float) -> float:
        if self.log:
            value = max(value, self.low)
            share = (math.log10(value) - math.log10(self.low)) / (
                math.log10(self.high) - math.log10(self.low)
            )
        else:
            share = (value - self.low) / (self.high - self.low)
        return SIZE * share


def _across(xs: Sequence[float]) -> _Scale:
    return _Scale(xs[0], xs[-1]) if xs[-1] > xs[0] else _Scale(xs[0] - 1, xs[0] + 1)


def _edges(xs: Sequence[float]) -> list[float]:
    """Where the columns around ``xs`` begin and end: halfway to their neighbours."""
    if len(xs) == 1:
        return [xs[0] - 0.5, xs[0] + 0.5]
    middles = [(a + b) / 2 for a, b in zip(xs, xs[1:], strict=False)]
    return [2 * xs[0] - middles[0], *middles, 2 * xs[-1] - middles[-1]]


def _vertical(
    lines: Sequence[Line], log: bool, zero: bool, top: float | None, least: float
) -> tuple[_Scale, list[float]]:
    """The axis and its ticks; ``least`` is the length of one that shows nothing but zeros."""
    groups = [group for line in lines for group in (line.y, line.faint or (), *(line.band or ()))]
    values = [value for group in groups for value in group if math.isfinite(value)]
    if log and any(value > 0 for value in values):
        return _logarithmic([value for value in values if value > 0])
    low, high = min(values), max(values)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    if zero and low == high:
        high = least
    high = max(high, top) if top is not None else high
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    step = _nice((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return _Scale(first * step, last * step), [i * step for i in range(first, last + 1)]


def _logarithmic(values: Sequence[float]) -> tuple[_Scale, list[float]]:
    """Ticks at 1, 2 and 5 within two decades, at powers of ten beyond."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    fine = last - first <= 2
    marks = [m * 10.0**e for e in range(first, last + 1) for m in ((1, 2, 5) if fine else (1,))]
    low = max(m for m in marks if m <= min(values) * (1 + 1e-9))
    high = min(m for m in [*marks, 10.0 ** (last + 1)] if m > low and m >= max(values) * (1 - 1e-9))
    ticks = [m for m in marks if low <= m <= high]
    return _Scale(low, high, log=True), ticks[:: max(1, math.ceil(len(ticks) / 6))]


def _nice(step: float) -> float:
    size = 10 ** math.floor(math.log10(step))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= step * (1 - 1e-9))


def _grid(up: _Scale, ticks: Sequence[float]) -> Markup:
    return Markup("").join(
        Markup('<line class="grid" x1="0" x2="{s}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
            s=SIZE, y=SIZE - up.place(t)
        )
        for t in ticks
    )


def _level_line(up: _Scale, limit: float) -> Markup:
    if not up.low <= limit <= up.high:
        return Markup("")
    return Markup('<line class="limit" x1="0" x2="{s}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
        s=SIZE, y=SIZE - up.place(limit)
    )


def _upright(across: _Scale, mark: float) -> Markup:
    return Markup('<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{s}"/>').format(
        x=across.place(mark), s=SIZE
    )


def _band(line: Line, across: _Scale, up: _Scale) -> Markup:
    if line.band is None:
        return Markup("")
    low, high = line.band
    kept = [i for i in range(len(line.x)) if math.isfinite(low[i]) and math.isfinite(high[i])]
    edge = [(line.x[i], high[i]) for i in kept] + [(line.x[i], low[i]) for i in reversed(kept)]
    shape = " ".join(f"{across.place(x):.1f},{SIZE - up.place(y):.1f}" for x, y in edge)
    return Markup('<polygon points="{}" style="fill:{};opacity:.16"/>').format(shape, line.color)


def _path(line: Line, across: _Scale, up: _Scale) -> Markup:
    faint = _stroke(line.x, line.faint, line, across, up, "faint") if line.faint is not None else Markup("")
    return faint + _stroke(line.x, line.y, line, across, up, "line")


def _stroke(
    xs: Sequence[float], ys: Sequence[float], line: Line, across: _Scale, up: _Scale, kind: str
) -> Markup:
    """One path with a move after every gap; a point alone gets a length of zero, which a round cap makes a dot."""
    commands, open_segment = [], False
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if not math.isfinite(y):
            open_segment = False
            continue
        place = f"{across.place(x):.1f} {SIZE - up.place(y):.1f}"
        alone = not open_segment and not (i + 1 < len(ys) and math.isfinite(ys[i + 1]))
        commands.append(f"{'L' if open_segment else 'M'}{place}" + (f"L{place}" if alone else ""))
        open_segment = True
        if alone and kind == "line":
            kind = "line dots" if len(ys) == 1 else kind
    return Markup('<path class="{}" d="{}" style="stroke:{}" stroke-dasharray="{}"/>').format(
        kind, "".join(commands), line.color, line.dash or "none"
    )


def _hover(
    lines: Sequence[Line], xs: Sequence[float], across: _Scale, percent: bool, x_label: str
) -> dict[str, object]:
    """What the read-out needs: places, x, and one text per series and x."""
    columns = [dict(zip(line.x, line.faint or line.y, strict=True)) for line in lines]
    return {
        "label": x_label,
        "at": [round(across.place(x) / 10, 2) for x in xs],
        "x": [f"{x:g}" for x in xs],
        "series": [
            {
                "name": line.name,
                "color": line.color,
                "y": [_number(column.get(x, math.nan), percent) for x in xs],
            }
            for line, column in zip(lines, columns, strict=True)
        ],
    }


def _head(title: str, unit: str, note: str) -> Markup:
    shown = Markup(' <span class="unit">{}</span>').format(unit) if unit else ""
    below = Markup('<p class="note">{}</p>').format(note) if note else ""
    return Markup("<figcaption><h3>{}{}</h3>{}</figcaption>").format(title, shown, below)


def _legend(lines: Sequence[Line]) -> Markup:
    items = Markup("").join(
        Markup('<li><svg width="18" height="8" aria-hidden="true"><line x1="1" x2="17" y1="4" y2="4" '
               'style="stroke:{}" stroke-dasharray="{}"/></svg>{}</li>').format(
            line.color, line.dash or "none", line.name
        )
        for line in lines
    )  # fmt: skip
    return Markup('<ul class="legend">{}</ul>').format(items)


def _x_axis(xs: Sequence[float], across: _Scale, label: str) -> Markup:
    step = max(1.0, _nice((xs[-1] - xs[0]) / 4)) if len(xs) > 1 else 1.0
    step = math.ceil(step)
    ticks = [t for t in range(int(xs[0] // step) * step, int(xs[-1]) + 1, step) if xs[0] <= t <= xs[-1]]
    spans = Markup("").join(
        Markup('<span style="left:{:.2f}%">{}</span>').format(across.place(t) / 10, f"{t:g}")
        for t in ticks or xs[:1]
    )
    return spans + Markup("<em>{}</em>").format(label)


def _tick_texts(ticks: Sequence[float], percent: bool) -> list[str]:
    """With as many digits as tell them apart."""
    texts = [_number(tick, percent) for tick in ticks]
    digits = 5
    while len(set(texts)) < len(texts) and digits < 12:
        texts = [f"{100 * t:.{digits}g} %" if percent else f"{t:.{digits}g}" for t in ticks]
        digits += 1
    return [text.replace("-", "−") for text in texts]


def _number(value: float, percent: bool) -> str:
    if not math.isfinite(value):
        return "–"
    if percent:
        return f"{100 * value:.3g} %".replace("-", "−")
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}".replace("-", "−")
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
