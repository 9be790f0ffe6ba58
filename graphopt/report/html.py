"""report.html: one page that opens from a disk or an e-mail, asks nothing of the network, and prints.

``page.html.j2`` is the page, with its style sheet and its one script beside it. Whatever is printed there, strings from the
model included, goes through ``units.visible`` and then through Jinja's escaping; the script is given no data but the table that
it filters. A content security policy allows this very style sheet and script by their hashes and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from . import charts, summary, units
from .schema import FigureRow, Report, SensitivityRow, Timing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.ranking import Ranking

_OPERATORS_DRAWN = 12
_SITES_DRAWN = 30
_ROWS_DRAWN = 80
_CURVES_DRAWN = 48


def to_html(report: Report) -> str:
    """Return the report as one HTML page that needs nothing but itself."""
    rankings = [(row.name, row.sensitivity) for row in report.passes if row.sensitivity]
    drawn = [[_drawing(figure) for figure in row.figures] for row in report.passes]
    values = {"rankings": _with_charts(rankings), "drawn": drawn}
    return page("page.html.j2", _charts(report), report=report, summary=summary, **values)


def sensitivity_page(ranking: Ranking) -> str:
    """Return what ``graphopt sensitivity`` found as one HTML page."""
    rankings = [(one.name, one.sites) for one in ranking.passes]
    return page("sensitivity.html.j2", {}, ranking=ranking, rankings=_with_charts(rankings))


def page(template: str, markup: Mapping[str, str], **values: object) -> str:
    """Render a page with the style sheet and script of all pages; ``markup`` is printed as it is, ``values`` are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: units.visible(value) if type(value) is str else value,  # Markup is a subclass of str
    )
    style, script = (environment.get_template(name).render() for name in ("page.css.j2", "page.js.j2"))
    return environment.get_template(template).render(
        units=units,
        style_hash=_hash(style),
        script_hash=_hash(script),
        style=Markup(style),  # noqa: S704 - our file
        script=Markup(script),  # noqa: S704 - our file
        **{name: Markup(text) for name, text in markup.items()},  # noqa: S704 - charts escape their texts
        **values,
    )


def _with_charts(rankings: Sequence[tuple[str, Sequence[SensitivityRow]]]) -> list[tuple[str, Sequence[SensitivityRow], str]]:
    """Each pass's name, rows and chart."""
    from markupsafe import Markup

    return [(name, rows, Markup(sensitivity_chart(rows))) for name, rows in rankings]  # noqa: S704 - charts escape their texts


def sensitivity_chart(rows: Sequence[SensitivityRow]) -> str:
    """The most sensitive sites as bars: the size of the change relative to that of the outputs, sqrt(noise / signal)."""
    drawn = [
        charts.Bar(row.site, math.sqrt(min(row.damage, 1.0)), f"{units.number(row.sqnr_db).text} dB", "after")
        for row in rows[:_SITES_DRAWN]
    ]
    return charts.bars(drawn, label="Sites by how far the outputs move when each alone is changed")


def _drawing(figure: FigureRow) -> tuple[str, bool, str]:
    """A figure's title, whether its colours need a legend, and its drawing."""
    from markupsafe import Markup

    bars = figure.kind == "bars"
    drawn = bar_figure(figure) if bars else curve_figure(figure)
    return figure.title, bars and len(figure.series) > 1, Markup(drawn)  # noqa: S704 - charts escape their texts


def bar_figure(figure: FigureRow) -> str:
    """A row for each label: the first series above the second."""
    first, *others = figure.series.values()
    second = others[0] if others else None
    rows = []
    for place, label in enumerate(figure.labels[:_ROWS_DRAWN]):
        values = [units.number(series[place]).text for series in figure.series.values()]
        after = first[place] if second is None else second[place]
        rows.append(charts.Pair(label, first[place] if second is not None else 0.0, after, " → ".join(values)))
    return charts.grouped(rows, label=figure.title) + _and_more(len(figure.labels) - len(rows))


def curve_figure(figure: FigureRow) -> str:
    """A small curve for each series, with a line where its mark is."""
    drawn = [
        charts.curve(name, values, mark=figure.marks.get(name), label=f"{figure.title}: {name}")
        for name, values in [*figure.series.items()][:_CURVES_DRAWN]
    ]
    return f'<div class="curves">{"".join(drawn)}</div>' + _and_more(len(figure.series) - len(drawn))


def _and_more(count: int) -> str:
    return f'<p class="soft small">{count} more are in report.json.</p>' if count > 0 else ""


def _charts(report: Report) -> dict[str, str]:
    """The page's charts by name; empty where nothing was measured."""
    timing = report.timing
    return {
        "latency_chart": latency_chart(timing, summary.after_name(report)) if timing else "",
        "speed_chart": speed_chart(timing) if timing else "",
        "operator_chart": operator_chart(timing) if timing and timing.operators else "",
    }


def latency_chart(timing: Timing, after_name: str) -> str:
    """Two bars, before and after; the interval of their ratio is drawn on the second."""
    before, after = summary.latency(timing)
    low, high = (timing.before_ms / speed if speed else timing.after_ms for speed in (timing.speedup_high, timing.speedup_low))
    rows = [
        charts.Bar("Before", timing.before_ms, before.text, "before"),
        charts.Bar(after_name, timing.after_ms, after.text, "after", low, high),
    ]
    return charts.bars(rows, label=f"Latency: before {before.text}, {after_name.lower()} {after.text}")


def speed_chart(timing: Timing) -> str:
    """The speed-up with its interval, against no change at all."""
    said = summary.speed_interval(timing)
    return charts.interval(
        timing.speedup,
        timing.speedup_low,
        timing.speedup_high,
        text=said,
        reference=1.0,
        reference_text=f"1{units.TIMES} no change",
        label=f"Speed-up {said}, the 95% interval in brackets",
    )


def operator_chart(timing: Timing) -> str:
    """The operator types that take longest, before and after; those that take least are drawn as one."""
    found = sorted(timing.operators, key=lambda o: -max(o.before_ms, o.after_ms))
    rows = [_operator(o.op_type, o.before_ms, o.after_ms) for o in found[:_OPERATORS_DRAWN]]
    rest = found[_OPERATORS_DRAWN:]
    if rest:
        rows.append(_operator(f"{len(rest)} other types", sum(o.before_ms for o in rest), sum(o.after_ms for o in rest)))
    return charts.grouped(rows, label=f"Time per operator type before and after: {_said(rows)}")


def _operator(name: str, before_ms: float, after_ms: float) -> charts.Pair:
    before, after = units.milliseconds(before_ms, after_ms), units.milliseconds(after_ms, before_ms)
    text = f"{before.text} → {after.text}"
    return charts.Pair(name, before_ms, after_ms, text, f"{name}: {before.exact} before, {after.exact} after")


def _said(rows: Sequence[charts.Pair]) -> str:
    return "; ".join(f"{row.label} {row.text}" for row in rows)


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
