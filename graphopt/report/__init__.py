"""The evidence: report.json (``schema.py``), report.md and a self-contained report.html made from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.benching import Measured
    from graphopt.ranking import Ranking

    from .schema import Report

__all__ = ["make_folder", "to_html", "to_json", "to_markdown", "write", "write_bench", "write_ranking"]


def to_json(report: Report) -> str:
    """Return report.json: strict JSON that ``docs/report.schema.json`` describes."""
    return report.model_dump_json(by_alias=True, indent=2, fallback=str) + "\n"


def to_markdown(report: Report) -> str:
    """Return the report in GitHub's Markdown, short enough for a comment on a pull request."""
    from . import markdown

    return markdown.to_markdown(report)


def to_html(report: Report) -> str:
    """Return the report as one HTML page that needs nothing but itself."""
    from . import html

    return html.to_html(report)


def make_folder(folder: Path) -> None:
    """Make the folder that a report will go to: called before the work, so that the work is not lost for want of a place.

    Raises:
        UsageError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = None if os.access(folder, os.W_OK | os.X_OK) else "it is not writable"
    except OSError as error:
        problem = str(error.strerror)
    if problem is not None:
        hint = "Give --report a folder that can be made and written to."
        raise UsageError(f"the report cannot be written: {problem}", where=str(folder), hint=hint)


def write(report: Report, folder: Path) -> None:
    """Write report.json, report.md and report.html; the folder is made, and each file is replaced as a whole.

    Raises:
        UsageError: The folder cannot be made or written to.
    """
    _replace_all(folder, {"report.json": to_json(report), "report.md": to_markdown(report), "report.html": to_html(report)})


def write_ranking(ranking: Ranking, folder: Path) -> None:
    """Write sensitivity.json and sensitivity.html, as ``write`` does.

    Raises:
        UsageError: The folder cannot be made or written to.
    """
    from . import html

    pages = {"sensitivity.json": ranking.model_dump_json(indent=2) + "\n", "sensitivity.html": html.sensitivity_page(ranking)}
    _replace_all(folder, pages)


def write_bench(rows: Sequence[Measured], folder: Path) -> None:
    """Write bench.json and bench.html, as ``write`` does.

    Raises:
        UsageError: The folder cannot be made or written to.
    """
    from . import bench

    _replace_all(folder, {"bench.json": bench.to_json(rows), "bench.html": bench.to_html(rows)})


def _replace_all(folder: Path, contents: Mapping[str, str]) -> None:
    """Write files, each as a whole, into a folder that is made if it is not there."""
    make_folder(folder)
    try:
        for name, content in contents.items():
            _replace(folder / name, content)
    except OSError as error:
        raise UsageError(f"the report cannot be written: {error.strerror}", where=str(folder)) from error


def _replace(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(content, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
