"""What ``graphopt bench`` measured, as a table for the terminal, as bench.json and as bench.html.

The page has a chart of latency for each model, one of throughput where batch sizes or threads were swept, one of the cold
start, and the table. What was not measured is listed with the reason, targets that do not run here last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.environment import environment

from . import charts, units
from .html import page

if TYPE_CHECKING:
    from graphopt.benching import Measured

_NOT_KNOWN = "—"


def columns(rows: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of what was measured; columns that are the same everywhere, or empty, are left out."""
    done = [row for row in rows if row.error is None]
    names = _short([row.model for row in done])
    table: dict[str, list[str]] = {
        "model": names,
        "target": [row.target for row in done],
        "batch": [str(row.batch) for row in done],
        "threads": [str(row.threads) for row in done],
        "p50": [_time(row.p50_ms) for row in done],
        "p90": [_time(row.p90_ms) for row in done],
        "p99": [_time(row.p99_ms) for row in done],
        "samples/s": [_NOT_KNOWN if row.samples_per_second is None else _rate(row.samples_per_second) for row in done],
        "load": [_time(row.load_ms) for row in done],
        "first answer": [_time(row.cold_start.total_ms if row.cold_start else None) for row in done],
        "memory": [_memory(row) for row in done],
        "energy": [_NOT_KNOWN if row.joules is None else f"{1000 * row.joules:.3g} mJ" for row in done],
    }
    swept = {"batch", "threads"}
    shown = [
        name
        for name, cells in table.items()
        if not (name in swept and len(set(cells)) < 2) and not (name not in swept and set(cells) == {_NOT_KNOWN})
    ]
    return shown, [[table[name][index] for name in shown] for index in range(len(done))]


def reasons(rows: Sequence[Measured]) -> list[str]:
    """What the figures are of, and what is missing and why, one line each."""
    done = [row for row in rows if row.error is None]
    lines = []
    if done:
        clocks = sorted(
            {
                f"{'CPU' if row.clock == 'cpu' else 'wall'} time, {row.threads} thread{'s' if row.threads != 1 else ''}"
                for row in done
            }
        )
        batches = sorted({row.batch for row in done})
        batch = "One sample" if batches == [1] else f"{', '.join(map(str, batches))} samples"
        lines.append(f"{batch} a run; latency in {'; '.join(clocks)}.")
    if any(row.cold_start for row in done):
        lines.append(
            "First answer: a fresh process imports the engine, loads the model and runs it once. "
            "Memory: what the model adds to the peak of that process."
        )
    lines += [f"{row.model} on {row.target}: {row.error}" for row in rows if row.error is not None and not row.absent]
    absent = dict.fromkeys((row.target, row.error or "") for row in rows if row.absent)
    lines += [f"not here: {target} ({why})" for target, why in absent]
    lines += [*dict.fromkeys(warning for row in done for warning in row.warnings)]
    lines += [f"not measured: {note}" for note in dict.fromkeys(note for row in done for note in row.notes)]
    return lines


def to_json(rows: Sequence[Measured]) -> str:
    """bench.json: where it was measured, and all rows."""
    here = environment().model_dump(mode="json")
    return json.dumps({"environment": here, "rows": [row.model_dump(mode="json") for row in rows]}, indent=2) + "\n"


@dataclass(frozen=True)
class _Section:
    """One model's charts."""

    name: str
    path: str
    latency: str
    throughput: str
    cold: str


def to_html(rows: Sequence[Measured]) -> str:
    """bench.html: one page that needs nothing but itself."""
    from markupsafe import Markup

    done = [row for row in rows if row.error is None]
    models = list(dict.fromkeys(row.model for row in done))
    sections = []
    for model, name in zip(models, _short(models), strict=True):
        own = [row for row in done if row.model == model]
        drawn = (latency_chart(own), throughput_chart(own), cold_chart(own))
        sections.append(_Section(name, model, *(Markup(chart) for chart in drawn)))  # noqa: S704 - charts escape their texts
    header, cells = columns(rows)
    return page(
        "bench.html.j2",
        {},
        sections=sections,
        header=header,
        cells=cells,
        clocks=next(iter(reasons(done)), ""),
        reasons=reasons(rows),
        environment=environment(),
    )


def latency_chart(rows: Sequence[Measured]) -> str:
    """A bar for each row, as long as its median; the whisker goes from there to the 90th percentile."""
    drawn = [
        charts.Bar(label, row.p50_ms, f"{_time(row.p50_ms)} (p99 {_time(row.p99_ms)})", "after", row.p50_ms, row.p90_ms)
        for label, row in zip(_labels(rows), rows, strict=True)
        if row.p50_ms is not None
    ]
    return charts.bars(drawn, label="Median latency by target, and the 90th percentile")


def throughput_chart(rows: Sequence[Measured]) -> str:
    """A bar for each row where something was swept; empty otherwise."""
    if len({(row.batch, row.threads) for row in rows}) < 2:
        return ""
    drawn = [
        charts.Bar(label, row.samples_per_second, f"{_rate(row.samples_per_second)} /s", "after")
        for label, row in zip(_labels(rows), rows, strict=True)
        if row.samples_per_second is not None
    ]
    return charts.bars(drawn, label="Samples per second by batch size and threads")


def cold_chart(rows: Sequence[Measured]) -> str:
    """The first answer of a fresh process beside a later one."""
    drawn = []
    for label, row in zip(_labels(rows), rows, strict=True):
        if row.cold_start is not None and row.wall_p50_ms is not None:
            parts = row.cold_start
            text = f"{_time(parts.total_ms)} → {_time(row.wall_p50_ms)}"
            title = f"import {_time(parts.import_ms)}, load {_time(parts.load_ms)}, first run {_time(parts.first_run_ms)}"
            drawn.append(charts.Pair(label, parts.total_ms, row.wall_p50_ms, text, title))
    return charts.grouped(drawn, label="Time until the first answer of a fresh process, and of a later run") if drawn else ""


def _labels(rows: Sequence[Measured]) -> list[str]:
    """What tells the rows of one model apart."""
    batches, threads = len({row.batch for row in rows}) > 1, len({row.threads for row in rows}) > 1
    labels = []
    for row in rows:
        parts = [row.target, *([f"batch {row.batch}"] if batches else [])]
        labels.append(", ".join([*parts, *([f"{row.threads} thr."] if threads else [])]))
    return labels


def _short(paths: Sequence[str]) -> list[str]:
    """The files' names, or their paths where two files have the same name."""
    names = [Path(path).name for path in paths]
    several = {name for name in names if len({path for path in paths if Path(path).name == name}) > 1}
    return [path if name in several else name for name, path in zip(names, paths, strict=True)]


def _memory(row: Measured) -> str:
    if row.peak_bytes is None or row.base_bytes is None:
        return _NOT_KNOWN
    return units.size(row.peak_bytes - row.base_bytes).text


def _time(milliseconds: float | None) -> str:
    return _NOT_KNOWN if milliseconds is None else units.milliseconds(milliseconds).text


def _rate(per_second: float) -> str:
    """Samples a second in whole numbers, where they have two digits."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2f}"
