"""A session whose time is known: it keeps the processor busy for as long as it is told."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from graphopt.contracts import Session


class Spinner(Session):
    """Each run burns ``milliseconds`` of CPU time of the calling thread; opening sleeps for ``load_seconds``."""

    opened = 0
    closed = 0

    def __init__(self, milliseconds: float, clock: Literal["cpu", "wall"] = "cpu", load_seconds: float = 0.0) -> None:
        time.sleep(load_seconds)
        self.milliseconds = milliseconds
        self.provider = "Spinner"
        self.clock = clock
        self.load_seconds = load_seconds
        self.inputs = self.outputs = ()
        self.collector_was_on = False
        Spinner.opened += 1

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.collector_was_on |= gc.isenabled()
        end = time.thread_time() + self.milliseconds / 1000
        while time.thread_time() < end:
            pass
        return {}

    def close(self) -> None:
        Spinner.closed += 1


def open_file(path: Path) -> Spinner:
    """Open a "model" file that holds nothing but its milliseconds."""
    return Spinner(float(path.read_text()))
