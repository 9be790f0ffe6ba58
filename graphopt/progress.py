"""What is being done and how long is left, on stderr: bars on a terminal, elsewhere a line now and then while work is long.

They are also where a command looks whether it was interrupted: Python raises KeyboardInterrupt wherever it happens to be, and
drops it when that is a destructor or a callback of a library.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_QUIET_SECONDS = 30.0
"""A log gets no line sooner than so long after the one before."""


class _Left(TimeRemainingColumn):
    """How long is left, said only where that is known."""

    def render(self, task: Task) -> Text:
        return Text.assemble(super().render(task), " left") if task.time_remaining is not None else Text()


class Bars:
    """A ``contracts.Progress`` for people. Stages may nest: each gets a line of its own while it is open.

    While they are shown, Ctrl-C ends the command at the latest where a stage begins, advances or ends.
    """

    _interrupted = False

    def __init__(self, console: Console | None = None, quiet: float = _QUIET_SECONDS) -> None:
        self._console = console = console or Console(stderr=True, soft_wrap=True)
        self._quiet = quiet
        self._begun = self._told = time.monotonic()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            _Left(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Bars:
        main = threading.current_thread() is threading.main_thread()  # where Python handles signals
        self._ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._interrupt)
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: object) -> None:
        del number, frame
        self._interrupted = True
        raise KeyboardInterrupt

    def _go_on(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        now = time.monotonic()
        if self._console.is_terminal or now - self._told < self._quiet or not self._bars.tasks:
            return
        self._told = now
        stages = [f"{task.description} {task.percentage:.0f}%" if task.total else task.description for task in self._bars.tasks]
        self._console.print(f"{now - self._begun:.0f} s: {', '.join(stages)}", highlight=False, markup=False)

    def stage(self, what: str, total: float | None = None) -> AbstractContextManager[Callable[[float], None]]:
        """Show a stage until it is left."""
        return self._stage(what, total)

    @contextmanager
    def _stage(self, what: str, total: float | None) -> Iterator[Callable[[float], None]]:
        self._go_on()
        task = self._bars.add_task(what, total=total)

        def advance(steps: float) -> None:
            self._go_on()
            self._bars.advance(task, steps)

        try:
            yield advance
        finally:
            self._bars.remove_task(task)
        self._go_on()
