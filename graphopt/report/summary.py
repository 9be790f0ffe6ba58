"""What a report comes down to, in the words and rows that the Markdown and the HTML share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from . import units
from .schema import ChangeRow, MetricRow, OutputDivergence, PassRow, Report, Timing, Validation
from .units import Shown

Trend = Literal["better", "worse", "same"]


@dataclass(frozen=True)
class Row:
    """One line of the before/after table."""

    what: str
    before: Shown
    after: Shown
    change: str = ""
    trend: Trend = "same"


@dataclass(frozen=True)
class Headline:
    """One of the few figures that matter most: what it is about, the figure in words, and where it comes from."""

    what: str
    figure: str
    detail: str
    trend: Trend


@dataclass(frozen=True)
class Listed:
    """A change with the pass it belongs to (``index`` counts from 1). What an undone pass had done is undone with it."""

    index: int
    name: str
    change: ChangeRow
    state: Literal["done", "declined", "undone"]


def after_name(report: Report) -> str:
    """What the figures of the other file are called: one that was not written is but a candidate."""
    return "After" if report.output else "Candidate"


def title(report: Report) -> str:
    """The name of the model file."""
    return PurePath(report.input.path).name or report.input.path


def cautions(report: Report) -> list[str]:
    """What a reader must know before the figures are believed, as short labels; ``notes`` hold the details."""
    validation, timing = report.validation, report.timing
    tests = {
        "not compared with the original": validation is None and report.output is not None,
        "inputs were generated": validation is not None and validation.generated,
        "latency was not measured": timing is None and report.output is not None,
        "timing stopped early": timing is not None and not timing.converged,
    }
    return [text for text, applies in tests.items() if applies]


def headlines(report: Report) -> list[Headline]:
    """The speed, the size, the quality and the arithmetic, as far as they are known."""
    found = []
    if report.timing is not None:
        found.append(Headline("Latency", speed(report.timing), _arrow(*latency(report.timing)), latency_trend(report.timing)))
    if report.output is not None:
        found.append(_saving("File size", units.size, report.input.bytes, report.output.bytes, ("smaller", "larger")))
    if report.validation is not None:
        found.append(_quality(report.validation))
    a, b = report.input.macs, report.output.macs if report.output else None
    if a is not None and b is not None and a != b:
        found.append(_saving("Multiply-accumulates", units.macs, a, b, ("fewer", "more")))
    return found


def before_after(report: Report) -> list[Row]:
    """Size, nodes, parameters, MACs, opset, latency and metric; what was not measured is left out."""
    a, b = report.input, report.output
    rows = [
        _row("File size", units.size, a.bytes, b.bytes if b else None, judged=True),
        _row("Nodes", units.whole, a.nodes, b.nodes if b else None),
        _row("Parameters", units.count, a.parameters, b.parameters if b else None),
        _row("MACs per sample", units.macs, a.macs, b.macs if b else None),
    ]
    if b is not None and a.opset != b.opset:
        rows.append(Row("Opset", Shown(str(a.opset)), Shown(str(b.opset)), "changed"))
    if report.timing is not None:
        rows += _latency_rows(report.timing)
    if report.validation is not None and report.validation.metric is not None:
        metric = report.validation.metric
        trend = metric_trend(metric, report.validation.max_drop)
        shown = units.score(metric.before), units.score(metric.after)
        rows.append(Row(f"Metric: {metric.name}, {_samples(report.validation)}", *shown, _difference(metric), trend))
    return rows


def operator_counts(report: Report) -> list[tuple[str, int, int]]:
    """Nodes in the file by operator type, before and after, the most frequent first."""
    before, after = report.input.operators, report.output.operators if report.output else {}
    names = sorted({**before, **after}, key=lambda name: (-max(before.get(name, 0), after.get(name, 0)), name))
    return [(name, before.get(name, 0), after.get(name, 0)) for name in names]


def listed_changes(report: Report) -> list[Listed]:
    """All listed changes of all passes, in order."""
    return [
        Listed(index, row.name, change, "declined" if not change.done else "done" if row.kept else "undone")
        for index, row in enumerate(report.passes, start=1)
        for change in row.changes
    ]


def latency(timing: Timing) -> tuple[Shown, Shown]:
    """Both medians, in one unit."""
    return _pair(units.milliseconds, timing.before_ms, timing.after_ms)


def speed(timing: Timing) -> str:
    """The verdict on the latency in words."""
    if timing.verdict == "same":
        return "no difference"
    if timing.verdict == "faster":
        return f"{units.factor(timing.speedup).text} as fast"
    slower = 1 / timing.speedup if timing.speedup else math.inf
    return f"takes {units.factor(slower).text} as long"


def speed_interval(timing: Timing) -> str:
    """The speed-up with its 95 % interval in brackets."""
    low, high = (units.factor(v).text[:-1] for v in (timing.speedup_low, timing.speedup_high))
    return f"{units.factor(timing.speedup).text} ({low} to {high})"


def clock(timing: Timing) -> str:
    """The clock that the latency was taken with."""
    return "CPU time" if timing.clock == "cpu" else "wall time"


def latency_trend(timing: Timing) -> Trend:
    """Whether the timing's verdict is good news."""
    trends: dict[str, Trend] = {"faster": "better", "same": "same", "slower": "worse"}
    return trends[timing.verdict]


def metric_trend(metric: MetricRow, max_drop: float | None) -> Trend:
    """A drop within the budget is no bad news."""
    if metric.drop < 0:
        return "better"
    return "same" if metric.drop <= (max_drop or 0.0) else "worse"


def metric_change(metric: MetricRow) -> str:
    """The change of the metric in words; its sign is that of ``drop``, since a lower perplexity is no loss."""
    if metric.drop == 0:
        return "no drop"
    return f"{units.number(abs(metric.drop)).text} {'worse' if not metric.drop < 0 else 'better'}"


def worst_first(validation: Validation) -> list[tuple[str, OutputDivergence]]:
    """The outputs, those that differ most first; equal ones keep the model's order."""
    return sorted(validation.outputs.items(), key=lambda item: -math.inf if math.isnan(item[1].sqnr_db) else item[1].sqnr_db)


def own_noise(validation: Validation) -> list[tuple[str, OutputDivergence]]:
    """The original's own noise, as rows after those of the outputs; none where it was not measured."""
    return [(f"{name}, own noise", row) for name, row in (validation.noise.outputs.items() if validation.noise else ())]


def changes_made(row: PassRow) -> tuple[int, int]:
    """How many listed changes were done and how many were declined."""
    done = sum(change.done for change in row.changes)
    return done, len(row.changes) - done


def _quality(validation: Validation) -> Headline:
    metric, outputs = validation.metric, validation.outputs
    if metric is not None:
        shown = _arrow(units.score(metric.before), units.score(metric.after))
        detail = f"{shown}, {_samples(validation)}"
        return Headline(f"Metric: {metric.name}", metric_change(metric), detail, metric_trend(metric, validation.max_drop))
    trend: Trend = "same" if validation.passed else "worse"
    if validation.passed and all(math.isinf(o.sqnr_db) and o.sqnr_db > 0 for o in outputs.values()):
        return Headline("Outputs", "identical", _samples(validation), trend)
    if not outputs:
        return Headline("Outputs", "none", "the target cannot run the result", trend)
    (_, worst), *_ = worst_first(validation)
    figure = "agree" if validation.passed else "differ"
    return Headline("Outputs", figure, f"worst SQNR {units.number(worst.sqnr_db).text} dB, {_samples(validation)}", trend)


def _saving(what: str, show: units.Show, before: float, after: float, words: tuple[str, str]) -> Headline:
    figure = "the same"
    if (change := units.change(before, after)) != "same":
        figure = f"{change.lstrip('+' + units.MINUS)} {words[after > before]}"
    return Headline(what, figure, _arrow(*_pair(show, before, after)), _trend(before, after))


def _samples(validation: Validation) -> str:
    kind = "generated sample" if validation.generated else "sample"
    return f"{validation.samples:,} {kind}{'' if validation.samples == 1 else 's'}"


def _latency_rows(timing: Timing) -> list[Row]:
    trend = latency_trend(timing)
    change = units.change(timing.before_ms, timing.after_ms)
    rows = [Row(f"Latency, {clock(timing)}", *latency(timing), change, trend)]
    if timing.clock == "cpu":
        wall = timing.wall_before_ms, timing.wall_after_ms
        rows.append(Row("Latency, wall time", *_pair(units.milliseconds, *wall), units.change(*wall)))
    return rows


def _row(what: str, show: units.Show, before: int | None, after: int | None, *, judged: bool = False) -> Row:
    """A row of counts; None is a figure that is not known, or that there is no file for."""
    if before is not None and after is not None:
        trend = _trend(before, after) if judged else "same"
        return Row(what, *_pair(show, before, after), units.change(before, after), trend)
    shown = [units.UNKNOWN if value is None else show(value, None) for value in (before, after)]
    return Row(what, shown[0], shown[1])


def _pair(show: units.Show, before: float, after: float) -> tuple[Shown, Shown]:
    return show(before, after), show(after, before)


def _arrow(before: Shown, after: Shown) -> str:
    return f"{before.text} → {after.text}"


def _trend(before: float, after: float) -> Trend:
    return "same" if before == after else "better" if after < before else "worse"


def _difference(metric: MetricRow) -> str:
    difference = metric.after - metric.before
    return "same" if difference == 0 else f"{'+' if difference > 0 else ''}{units.number(difference, 3).text}"
