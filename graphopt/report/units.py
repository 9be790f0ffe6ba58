"""Figures as people read them: ``Shown`` pairs a rounded text with the exact value.

Sizes are decimal (1 KB is 1,000 bytes); three significant digits are kept. Two figures that stand side by side get one unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

MINUS, TIMES = "\u2212", "\u00d7"

# C0 and C1 controls, soft hyphen, zero-width and bidirectional marks, line separators, lone surrogates, byte-order mark
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")


class Shown(NamedTuple):
    """A figure for people: ``text`` is rounded, ``exact`` says all of it, with its unit."""

    text: str
    exact: str = ""


Show = Callable[[float, float | None], Shown]
"""Shows a figure; the second argument is the one that it stands beside."""

UNKNOWN = Shown("—", "not known")


def visible(text: str) -> str:
    """Show what cannot be seen: a line break as an arrow, other control and direction characters as their escape."""
    return _INVISIBLE.sub(lambda match: "\u21b5" if match[0] == "\n" else repr(match[0])[1:-1], text)


def shorten(text: str, length: int) -> str:
    """Return ``text`` with its middle left out if it has more than ``length`` characters."""
    if len(text) <= length:
        return text
    tail = length // 2 - 1
    return f"{text[: length - tail - 1]}…{text[-tail:]}"


def size(value: float, beside: float | None = None) -> Shown:
    """A number of bytes."""
    unit = "byte" if value == 1 else "bytes"
    return Shown(_scaled(value, beside, (unit, "KB", "MB", "GB", "TB")), f"{value:,} {unit}")


def count(value: float, beside: float | None = None) -> Shown:
    """A large number of things, such as parameters."""
    if max(value, beside or 0) < 10_000:
        return whole(value)
    return Shown(_scaled(value, beside, ("", "K", "M", "B", "T")), f"{value:,}")


def macs(value: float, beside: float | None = None) -> Shown:
    """A number of multiply-accumulates."""
    return Shown(_scaled(value, beside, ("", "K", "M", "G", "T")), f"{value:,}")


def whole(value: float, beside: float | None = None) -> Shown:  # noqa: ARG001 - one signature for all figures in a table
    """A number of things that is shown in full, such as nodes."""
    return Shown(f"{value:,}", "")


def milliseconds(value: float, beside: float | None = None) -> Shown:
    """A time that is given in milliseconds."""
    if not value and not beside:
        return Shown("0 ms")
    nanoseconds = None if beside is None else beside * 1e6
    return Shown(_scaled(value * 1e6, nanoseconds, ("ns", "µs", "ms", "s")), f"{value!r} ms")


def seconds(value: float) -> Shown:
    """How long something took, for people who wait: 420 ms, 8.1 s, 3 min 20 s."""
    exact = f"{value!r} s"
    if not math.isfinite(value):
        return Shown(number(value).text, exact)
    if value < 59.95:
        return Shown(f"{value * 1e3:.0f} ms" if value < 0.9995 else f"{value:.1f} s", exact)
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return Shown(f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s", exact)


def number(value: float, digits: int = 3) -> Shown:
    """A figure without a unit; infinity and not-a-number are shown as such."""
    if math.isnan(value):
        return Shown("NaN", "not a number")
    if math.isinf(value):
        return Shown("∞" if value > 0 else f"{MINUS}∞", "infinite")
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    text = f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return Shown(_signed(text), repr(value))


def score(value: float) -> Shown:
    """A metric, in four digits, so that two of them can be compared: 0.9100 beside 0.9333."""
    if not math.isfinite(value):
        return number(value)
    return Shown(_signed(f"{value:.4f}" if 0.001 <= abs(value) < 1 else f"{value:#.4g}".rstrip(".")), repr(value))


def factor(value: float) -> Shown:
    """How many times as fast."""
    text = number(value).text if value >= 9.995 else f"{value:.2f}"
    return Shown(f"{text}{TIMES}", repr(value))


def change(before: float, after: float) -> str:
    """The relative change in percent with its sign; "same" where that rounds to nothing."""
    if before == after:
        return "same"
    if before == 0 or not math.isfinite(before) or not math.isfinite(after):
        return "—"
    percent = (after - before) / before * 100
    if abs(percent) < 0.05:
        return "same"
    text = f"{percent:,.0f}" if abs(percent) >= 100 else f"{percent:.1f}"
    return f"{'+' if percent > 0 else ''}{_signed(text)}%"


def _signed(text: str) -> str:
    return text.replace("-", MINUS)


def _scaled(value: float, beside: float | None, units: tuple[str, ...]) -> str:
    """Three significant digits in the largest unit in which the larger figure is at least 1 and the smaller at least 0.1."""
    if not math.isfinite(value):
        return number(value).text
    figures = sorted(abs(v) for v in (value, beside) if v and math.isfinite(v)) or [0.0]
    power = 0
    while power < len(units) - 1 and float(f"{figures[-1]:.3g}") >= 1000 and figures[0] >= 100:
        figures, power = [v / 1000 for v in figures], power + 1
    scaled = value / 1000**power
    digits = f"{abs(scaled):.2e}"  # rounded before the exponent is read: 99.96 has as many digits as 100
    decimals = 0 if power == 0 or scaled == 0 else max(0, 2 - int(digits.partition("e")[2]))
    return f"{scaled:,.{decimals}f} {units[power]}".rstrip()
