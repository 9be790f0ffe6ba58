"""The verdict: whether a written file keeps what was promised, and one sentence that says what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .contracts import Partition
from .report import units
from .report.schema import ModelFacts, OutputDivergence, PassRow, Timing, Validation

SAME_SIZE = 0.001
"""Files whose sizes differ by less than this part are called equally large."""
_CLOSE = 1e-3
"""Where outputs are further apart than this part of their peak, the metric alone tells what that means."""


@dataclass(frozen=True)
class Judgement:
    """What is known about the file that would be written, and why it must not be (``problem``)."""

    facts: ModelFacts | None
    validation: Validation | None
    timing: Timing | None
    problem: str | None
    partition: Partition | None = None
    """Which provider takes which of its nodes; None where there is but one."""


def growth_limit(size: int) -> int:
    """By how many bytes a file of ``size`` bytes may grow in all: 1 MB or 5 %, whichever is more."""
    return max(1_000_000, size // 20)


def problem(
    before: ModelFacts,
    after: ModelFacts,
    validation: Validation | None,
    timing: Timing | None,
    goal: Literal["latency", "size"],
) -> str | None:
    """Say why the file does not pay; None when it does.

    It must agree with the original (or hold the budget). With the goal ``latency`` it must not be slower beyond the noise,
    nor grow by more than ``growth_limit``; with ``size`` it must not be larger.
    """
    if validation is not None and not validation.passed:
        return "; ".join(validation.problems)
    if goal == "latency" and timing is not None and timing.verdict == "slower":
        return f"slower than the original: {_speed(timing)}"
    allowed = growth_limit(before.bytes) if goal == "latency" else 0
    if after.bytes > before.bytes + allowed:
        return f"larger than the original: {after.bytes:,} bytes instead of {before.bytes:,}"
    return None


def sentence(before: ModelFacts, judged: Judgement, rows: Sequence[PassRow], *, passed: bool) -> str:
    """What came out, for the top of the report."""
    if not passed:
        undone = [f"{row.name} ({row.why})" for row in rows if not row.kept]
        reason = f"Every pass was undone: {'; '.join(undone)}" if undone else judged.problem
        return f"Nothing was written. {reason}."
    assert judged.facts is not None
    parts = [_speed(judged.timing) if judged.timing else "not timed", _size(before.bytes, judged.facts.bytes)]
    if judged.facts.nodes < before.nodes:
        parts.append(f"{before.nodes} nodes became {judged.facts.nodes}")
    parts.append(_answers(judged.validation))
    text = ", ".join(parts)
    undone = [row.name for row in rows if not row.kept]
    return f"{text[0].upper()}{text[1:]}." + (f" Undone: {', '.join(undone)}." if undone else "")


def _speed(timing: Timing) -> str:
    interval = f"{timing.speedup_low:.2f} to {timing.speedup_high:.2f}"
    if timing.verdict == "same":
        return f"same speed ({timing.speedup:.2f}×, {interval})"
    return f"{timing.speedup:.2f}× as fast ({interval})"


def _size(before: int, after: int) -> str:
    change = (after - before) / before
    if abs(change) < SAME_SIZE:
        return "same size"
    return f"{abs(change):.1%} {'smaller' if change < 0 else 'larger'}"


def _answers(validation: Validation | None) -> str:
    if validation is None:
        return "not verified"
    worst = _worst(validation.outputs)
    agree = "outputs equal" if worst == 0 else f"outputs within {worst:.1e} of the original's"
    if validation.noise is not None:
        agree += f", which move by {_worst(validation.noise.outputs):.1e} when its inputs and weights change in the last place"
    if (metric := validation.metric) is None:
        return agree
    pair = f"{units.score(metric.before).text} before and {units.score(metric.after).text} after"
    samples = f"{metric.name} {pair} on {validation.samples:,} sample{'' if validation.samples == 1 else 's'}"
    return samples if worst > _CLOSE and validation.noise is None else f"{samples}, {agree}"


def explained(validation: Validation | None) -> list[str]:
    """Why outputs count as equal that are not, for the notes of the report."""
    if validation is None or validation.noise is None or not validation.passed:
        return []
    noise, count = validation.noise, validation.noise.trials
    last = "A defect of a pass that changes the outputs by less would not have been seen."
    if noise.jumps is not None:
        last = f"Given the original's decisions at {noise.jumps} quantizers and other jumps, all values agree within rounding."
    return [
        f"The original blows up rounding: its outputs move by up to {_worst(noise.outputs):.2g} of their peak when its inputs "
        f"and weights change in the last place ({count} trial{'' if count == 1 else 's'}), so that differences within that "
        f"count as rounding. {last}"
    ]


def _worst(outputs: Mapping[str, OutputDivergence]) -> float:
    return max((output.max_rel for output in outputs.values()), default=0.0)
