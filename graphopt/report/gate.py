"""What the regression gate found: JUnit XML for a CI server, Markdown for a pull request."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.baseline import Regression


def junit_xml(results: Sequence[Regression]) -> str:
    """A JUnit report: a test case for each model and target, with its figures as properties."""
    failures = sum(result.failed for result in results)
    suite = ET.Element(
        "testsuite", name="graphopt bench", tests=str(len(results)), failures=str(failures), errors="0", skipped="0"
    )
    for result in results:
        case = ET.SubElement(suite, "testcase", classname=_xml(f"graphopt.bench.{result.target}"), name=_xml(result.model))
        case.set("time", f"{result.after_ms / 1000:.9f}")
        properties = ET.SubElement(case, "properties")
        for name in ("before_ms", "after_ms", "slowdown", "low", "high", "bound", "how"):
            ET.SubElement(properties, "property", name=name, value=str(getattr(result, name)))
        if result.failed:
            ET.SubElement(case, "failure", message=_xml(_sentence(result)), type="regression")
        if result.warnings:
            ET.SubElement(case, "system-out").text = _xml("\n".join(result.warnings))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(results: Sequence[Regression]) -> str:
    """A summary for a pull request: one row for each model and target, warnings below."""
    failures = sum(result.failed for result in results)
    head = f"**{failures} of {len(results)} slower than allowed**" if failures else "**No regression**"
    lines = [head, "", "| model | target | before | after | change | 95 % interval | allowed | how | verdict |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |")
    notes = []
    for result in results:
        change, low, high = (f"{value - 1:+.1%}" for value in (result.slowdown, result.low, result.high))
        row = [_cell(result.model), _cell(result.target), f"{result.before_ms:.3f} ms", f"{result.after_ms:.3f} ms", change]
        row += [f"{low} to {high}", f"{result.bound:+.1%}", result.how, "**slower**" if result.failed else "ok"]
        lines.append(f"| {' | '.join(row)} |")
        notes += [f"- {_cell(result.model)}: {_cell(warning)}" for warning in result.warnings]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _sentence(result: Regression) -> str:
    return (
        f"{result.slowdown - 1:.1%} slower ({result.before_ms:.3f} ms to {result.after_ms:.3f} ms; 95 % interval "
        f"{result.low - 1:+.1%} to {result.high - 1:+.1%}), {result.bound:.1%} is allowed"
    )


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold even when escaped."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table: nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]<>|~#!])", r"\\\1", " ".join(text.split()))
