"""What ``optimize`` and ``demo`` print for people: the verdict, before and after, and what each pass did."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from graphopt.report import summary, units
from graphopt.report.schema import Report, Timing

from .output import console, table

_BUSY = 1.5
"""Wall time beyond so many times the CPU time of one thread is other programs' doing."""
_NEXT = (
    "No faster without loss. For more speed at no more loss than you allow, try --recipe int8 (or prune, lowrank, compact) "
    "--data SAMPLES --eval LABELLED --max-drop 0.01."
)
_COLOURS = {"better": "green", "worse": "red", "same": "default"}


def show(report: Report, folder: Path | None) -> None:
    """Print a report's essence; ``folder`` is where the whole of it was written."""
    out = console()
    sign, colour = ("ok", "green") if report.passed else ("failed", "red")
    out.print(f"[bold {colour}]{sign}[/]  {escape(report.verdict)}", soft_wrap=True)
    made = table(("", "before", "after", "change"), [])
    for row in summary.before_after(report):
        cells = (row.what, row.before.text, row.after.text)
        made.add_row(*map(escape, cells), f"[{_COLOURS[row.trend]}]{escape(row.change)}[/]")
    out.print(made)
    if report.timing is not None:
        _show_timing(out, report.timing)
    passes = []
    for each in report.passes:
        done, declined = summary.changes_made(each)
        what = f"{done} change{'s' if done != 1 else ''}{f', {declined} declined' if declined else ''}"
        nodes = f"{each.nodes_before} to {each.nodes_after}"
        passes.append((each.name, "kept" if each.kept else "undone", what, nodes, units.seconds(each.seconds).text, each.why))
    if passes:
        out.print(table(("pass", "", "", "nodes", "time", "why"), passes, numbers_from=9))
    operators = [f"{name} {before} to {after}" for name, before, after in summary.operator_counts(report) if before != after]
    if operators and report.output is not None:
        out.print(f"Operators: {', '.join(operators)}.", markup=False, soft_wrap=True)
    for note in report.notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    if report.recipe == "lossless" and report.timing is not None and report.timing.verdict == "same":
        out.print(_NEXT, markup=False, soft_wrap=True)
    if report.output is not None:
        out.print(f"[bold]{escape(report.output.path)}[/] is written.", soft_wrap=True)
    if folder is not None:
        out.print(f"[bold]{escape(str(folder / 'report.html'))}[/] shows all of it.", soft_wrap=True)
    else:
        out.print("--report DIR writes all of it: what changed where, time per operator, every output.", soft_wrap=True)


def _show_timing(out: Console, timing: Timing) -> None:
    threads = f"{timing.threads} thread{'s' if timing.threads > 1 else ''}"
    out.print(
        f"Speed-up {summary.speed_interval(timing)}, 95 % interval; {summary.clock(timing)}, {timing.rounds} interleaved "
        f"rounds, {threads}, {timing.provider} on the target {timing.target}.",
        markup=False,
        soft_wrap=True,
    )
    if timing.clock == "cpu" and timing.wall_before_ms > _BUSY * timing.before_ms:
        out.print("The machine was busy: wall time holds other programs' time too. CPU time is what is judged.", soft_wrap=True)
    if not timing.converged:
        out.print("The interval is still wide: timing stopped at the time limit (--time-limit S for more).", markup=False)
