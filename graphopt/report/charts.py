"""Charts as inline SVG: pure functions from figures to markup, without a script and without a library.

A chart is as wide as its container: positions along the width are percentages and text has a fixed size, so it stays readable
on a phone and on paper. Colours come from the page's style sheet by class (``before``, ``after``, ``axis``, ``whisker``), which
is how dark mode and print work. Every text is escaped here; ``label`` is what a screen reader says in place of the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from .units import shorten, visible

_LABEL_LENGTH = 26  # characters that leave room for the figures on a phone


@dataclass(frozen=True)
class Bar:
    """One bar. ``text`` is the figure as it is printed; ``low`` and ``high`` draw a whisker."""

    label: str
    value: float
    text: str
    series: Literal["before", "after"]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Pair:
    """Two bars that belong together."""

    label: str
    before: float
    after: float
    text: str
    title: str = ""


def bars(rows: Sequence[Bar], *, label: str) -> str:
    """Horizontal bars from zero, one below the other, each with its label and figure above it."""
    top = max((_finite(v) for row in rows for v in (row.value, row.high or 0.0)), default=0.0)
    parts = []
    for index, row in enumerate(rows):
        y = index * 54
        parts.append(_caption(y + 14, row.label, row.text) + _bar(y + 22, 18, row.value, top, row.series))
        if row.low is not None and row.high is not None:
            parts.append(_whisker(y + 31, _percent(row.low, top), _percent(row.high, top)))
    return _svg(54 * len(rows) - 8, label, parts)


def grouped(rows: Sequence[Pair], *, label: str) -> str:
    """Two thin bars for each row, before above after, on one scale."""
    top = max((_finite(v) for row in rows for v in (row.before, row.after)), default=0.0)
    parts = []
    for index, row in enumerate(rows):
        y = index * 52
        drawn = _caption(y + 14, row.label, row.text)
        drawn += _bar(y + 21, 8, row.before, top, "before") + _bar(y + 30, 8, row.after, top, "after")
        parts.append(f"<g><title>{_text(row.title or row.label)}</title>{drawn}</g>")
    return _svg(52 * len(rows) - 8, label, parts)


def interval(value: float, low: float, high: float, *, text: str, reference: float, reference_text: str, label: str) -> str:
    """One figure with its interval on an axis that also shows what it is compared with."""
    ends = [v for v in (low, high, reference, value) if math.isfinite(v)]
    least, most = min(ends), max(ends)
    margin = (most - least) * 0.2 or abs(most) * 0.1 or 1.0
    start, span = least - margin, most - least + 2 * margin

    def at(v: float) -> float:
        return min(100.0, max(0.0, (v - start) / span * 100)) if math.isfinite(v) else 100.0

    zero = _coordinate(at(reference))
    parts = [
        '<line class="axis" x1="0" x2="100%" y1="34" y2="34"/>',
        f'<line class="axis reference" x1="{zero}" x2="{zero}" y1="22" y2="46"/>',
        f'<text class="quiet" x="{zero}" y="62" text-anchor="{_anchor(at(reference))}">{_text(reference_text)}</text>',
        _whisker(34, at(low), at(high)),
        f'<circle class="after" cx="{_coordinate(at(value))}" cy="34" r="5"/>',
        f'<text class="strong" x="{_coordinate(at(value))}" y="14" text-anchor="{_anchor(at(value))}">{_text(text)}</text>',
    ]
    return _svg(68, label, parts)


def curve(title: str, values: Sequence[float], *, mark: float | None, label: str) -> str:
    """A small curve over 0, 1, 2, ... from zero to its largest value; the first ``mark`` values are filled."""
    top = max((_finite(value) for value in values), default=0.0) or 1.0
    last = max(len(values) - 1, 1)
    points = [f"{100 * place / last:.2f},{100 - 100 * _finite(value) / top:.2f}" for place, value in enumerate(values)]
    drawn = ""
    if mark is not None:
        inside = points[: max(round(mark), 1)]
        end = inside[-1].partition(",")[0] if inside else "0"
        drawn = f'<polygon class="taken" points="0,100 {" ".join(inside)} {end},100"/>'
    drawn += f'<polyline class="curve" points="{" ".join(points)}"/>'
    name = _text(shorten(visible(title), _LABEL_LENGTH))
    box = f'<svg x="0" y="22" width="100%" height="64" viewBox="0 0 100 100" preserveAspectRatio="none">{drawn}</svg>'
    said = str(len(values)) if mark is None else f"{mark:g} of {len(values)}"
    texts = f'<text x="0" y="14">{name}</text><text class="quiet" x="100%" y="103" text-anchor="end">{_text(said)}</text>'
    return _svg(106, label, [texts, box, '<line class="axis" x1="0" x2="100%" y1="86" y2="86"/>'])


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    said = _text(label)
    return f'<svg class="chart" role="img" aria-label="{said}" width="100%" height="{max(height, 0)}">{"".join(parts)}</svg>'


def _text(text: str) -> str:
    return escape(visible(text))


def _caption(y: int, label: str, text: str) -> str:
    name = _text(shorten(visible(label), _LABEL_LENGTH))
    return f'<text x="0" y="{y}">{name}</text><text class="figure" x="100%" y="{y}" text-anchor="end">{_text(text)}</text>'


def _bar(y: int, height: int, value: float, top: float, series: str) -> str:
    track = f'<rect class="track" x="0" y="{y}" width="100%" height="{height}" rx="2"/>'
    return f'{track}<rect class="{series}" x="0" y="{y}" width="{_coordinate(_percent(value, top))}" height="{height}" rx="2"/>'


def _whisker(y: int, low: float, high: float) -> str:
    a, b = _coordinate(low), _coordinate(high)
    ends = ((a, b, y, y), (a, a, y - 6, y + 6), (b, b, y - 6, y + 6))
    lines = [f'x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>' for x1, x2, y1, y2 in ends]
    return "".join(f'<line class="{name}" {line}' for name in ("halo", "whisker") for line in lines)


def _finite(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else 0.0


def _percent(value: float, top: float) -> float:
    return 100 * _finite(value) / top if top else 0.0


def _coordinate(percent: float) -> str:
    return f"{percent:.2f}%"


def _anchor(percent: float) -> str:
    return "start" if percent < 25 else "end" if percent > 75 else "middle"
