"""report.md: the report as a comment on a pull request, short whatever the size of the model.

Strings from the model cannot become Markdown, HTML or mentions: names stand in code spans, and in sentences every character
that Markdown could read is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from . import summary, units
from .schema import OutputDivergence, PassRow, Report
from .units import shorten, visible

# An escaped character is up to six; with these limits even a text of nothing else fits.
_NAME_LENGTH, _TEXT_LENGTH = 80, 200
_OUTPUTS, _PASSES, _NOTES = 10, 15, 8

_ACTIVE = re.compile(r"[@#](?=\w)|[\\`*_\[\]~$#&<>|]|^[-+=]|^\d+(?=[.)](\s|$))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}


def to_markdown(report: Report) -> str:
    """Return the report in GitHub's Markdown, well under the 65,536 characters that a comment may have."""
    parts = [
        f"## graphopt: {code(summary.title(report))}",
        f"{'✅ **Passed.**' if report.passed else '❌ **Failed.**'} {text(report.verdict)}",
        *(f"⚠️ {caution[0].upper()}{caution[1:]}." for caution in summary.cautions(report)),
        _before_after(report),
        *_latency(report),
        *_passes(report),
        *_validation(report),
        *_notes(report),
        _footer(report),
    ]
    return "\n\n".join(parts) + "\n"


def code(name: str) -> str:
    """A name from the model as code that shows every character and can stand in a table."""
    name = shorten(visible(name), _NAME_LENGTH)
    if name and not re.search(r"[`|]|^\s|\s$", name):
        return f"`{name}`"
    inert = re.sub(r"[^\w ./:-]", lambda match: f"&#{ord(match[0])};", name)
    return f"<code>{inert}</code>"


def text(sentence: str) -> str:
    """A sentence that may hold names from the model, on one line, with nothing in it that Markdown could read."""
    return _ACTIVE.sub(_inert, shorten(visible(" ".join(sentence.split())), _TEXT_LENGTH))


def _inert(match: re.Match[str]) -> str:
    found, after = match[0], match.string[match.end() :]
    if found in _ENTITIES:
        return _ENTITIES[found]
    if found.isdigit():  # "1." would begin a list
        return f"{found}\\"
    if found == "@" or (found == "#" and re.match(r"\w", after)):
        return f"{found}&#8203;"  # a zero-width space: no mention, no link to an issue
    return f"\\{found}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table; the first ``left`` columns hold text, the others figures."""
    rule = [":---" if index < left else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _before_after(report: Report) -> str:
    rows = [(text(row.what), row.before.text, row.after.text, row.change) for row in summary.before_after(report)]
    return _table(("", "before", summary.after_name(report).lower(), "change"), rows)


def _latency(report: Report) -> list[str]:
    timing = report.timing
    if timing is None:
        return []
    threads = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
    taken = f"{summary.clock(timing)}, {timing.rounds:,} interleaved rounds, {threads}"
    on = f"target {code(timing.target)}, {code(timing.provider)}"
    return [f"Speed-up **{summary.speed_interval(timing)}**, 95% interval in brackets; {taken}; {on}."]


def _passes(report: Report) -> list[str]:
    if not report.passes:
        return ["No passes were run."]
    header = ("pass", "result", "why", "changes", "nodes", "bytes", "time")
    parts = [_table(header, [_pass(row) for row in report.passes[:_PASSES]], left=3)]
    if len(report.passes) > _PASSES:
        parts.append(f"{len(report.passes) - _PASSES} further passes are listed in report.json.")
    return ["### Passes", *parts]


def _pass(row: PassRow) -> tuple[str, ...]:
    done, _ = summary.changes_made(row)
    before, after = units.size(row.bytes_before, row.bytes_after), units.size(row.bytes_after, row.bytes_before)
    return (
        code(row.name),
        "kept" if row.kept else "**undone**",
        text(row.why),
        f"{done:,}{'+' if row.changes_left_out else ''}",
        f"{row.nodes_before:,} → {row.nodes_after:,}",
        f"{before.text} → {after.text}",
        units.seconds(row.seconds).text,
    )


def _validation(report: Report) -> list[str]:
    validation = report.validation
    if validation is None:
        return []
    outputs = summary.worst_first(validation)
    own = summary.own_noise(validation)
    rows = [(code(name), *_divergence(output)) for name, output in (*outputs[:_OUTPUTS], *own[:_OUTPUTS])]
    parts = [_table(("output", "max abs", "max rel", "cosine", "SQNR"), rows)] if rows else []
    if len(outputs) > _OUTPUTS:
        parts.append(f"The {len(outputs) - _OUTPUTS} other outputs differ less.")
    problems = _list(validation.problems)
    data = "generated samples" if validation.generated else f"samples of {code(validation.data)}"
    return ["### Outputs against the original", f"Compared on {validation.samples:,} {data}.", *problems, *parts]


def _divergence(output: OutputDivergence) -> tuple[str, ...]:
    sqnr = units.number(output.sqnr_db).text + (" dB" if math.isfinite(output.sqnr_db) else "")
    return units.number(output.max_abs).text, units.number(output.max_rel).text, units.number(output.cosine, 7).text, sqnr


def _notes(report: Report) -> list[str]:
    return ["### Notes", *_list(report.notes)] if report.notes else []


def _list(sentences: Sequence[str]) -> list[str]:
    lines = [f"- {text(sentence)}" for sentence in sentences[:_NOTES]]
    if len(sentences) > _NOTES:
        lines.append(f"- {len(sentences) - _NOTES} more in report.json")
    return ["\n".join(lines)] if lines else []


def _footer(report: Report) -> str:
    env = report.environment
    chosen = f"recipe {code(report.recipe)}, target {code(report.target)}, seed {report.seed}"
    versions = f"graphopt {report.graphopt_version}, Python {env.python}, onnxruntime {env.onnxruntime or 'not installed'}"
    command = shorten(report.command, 10 * _NAME_LENGTH)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    about = f"{versions}; {chosen}; {text(env.cpu)}, {env.cores} cores, {text(env.os)}."
    return f"{about}\n\n{fence}sh\n{command}\n{fence}"
