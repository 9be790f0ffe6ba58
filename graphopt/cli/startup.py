"""What a command need not wait for: sympy, and the garbage collector while modules are imported.

``onnx_ir`` imports sympy, a fifth of a second, for arithmetic with symbolic dimensions, which few models need; so it is given a
stand-in that imports sympy when something of it is used. And what is imported stays: a collector that looks through all of it
again and again takes a tenth of a second.
"""

from __future__ import annotations

import gc
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from graphopt.garbage import collected_later


def import_quickly() -> None:
    """Import what every command needs that reads a model."""
    with collected_later(), later("sympy"):
        import onnx_ir  # noqa: F401
    gc.freeze()


@contextmanager
def later(name: str) -> Iterator[None]:
    """Let modules that are imported in this context have a package that is imported when they use it.

    In the context itself they may take functions from it, but no classes to derive from.
    """
    if name in sys.modules:
        yield
        return
    importing = True

    def attribute(wanted: str) -> Any:
        if not importing:
            return getattr(importlib.import_module(name), wanted)

        def function(*args: Any, **named: Any) -> Any:
            real: Callable[..., Any] = getattr(importlib.import_module(name), wanted)
            return real(*args, **named)

        return function

    stand_in = types.ModuleType(name)
    stand_in.__dict__["__getattr__"] = attribute
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        importing = False
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
