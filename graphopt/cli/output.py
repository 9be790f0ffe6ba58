"""How commands print: tables on stdout, plain when piped, with numbers that a person reads at a glance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_PIPED_WIDTH = 140


def console() -> Console:
    """Stdout for people; wide and plain when it is not a terminal."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> Table:
    """A table whose columns from ``numbers_from`` on are right-aligned; cells are plain text, never markup."""
    made = Table(box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index >= numbers_from else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made
