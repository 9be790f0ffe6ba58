"""What is said while a command works."""

from __future__ import annotations

import io

from rich.console import Console

from graphopt.progress import Bars


def _logged(quiet: float) -> list[str]:
    log = Console(file=io.StringIO(), width=200)
    with Bars(log, quiet) as bars, bars.stage("prune (2 of 4)"), bars.stage("measuring [groups]", 4) as step:
        step(2)
        step(1)
    assert isinstance(log.file, io.StringIO)
    return [line.partition(": ")[2] for line in log.file.getvalue().splitlines()]


def test_a_log_of_long_work_says_where_it_is() -> None:
    assert "prune (2 of 4), measuring [groups] 50%" in _logged(quiet=0)


def test_a_log_of_short_work_says_nothing() -> None:
    assert _logged(quiet=60) == []
