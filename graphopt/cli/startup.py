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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graphopt.garbage import collected_later


def import_quickly() -> None:
    """Import what every command needs that reads a model."""
    with collected_later(), later("sympy", _CALLED):
        importlib.import_module("onnx_ir")
    gc.freeze()


_CALLED = frozenset({"Max", "Min", "Mod", "floor", "sqrt"})
"""What ``onnx_ir`` puts into a table while it is imported, and calls later."""


@contextmanager
def later(name: str, called: frozenset[str]) -> Iterator[None]:
    """Let modules that are imported in this context have a package that is imported when they use it.

    Of the package they may take ``called``, functions, in the context itself; if they take anything else, it is imported then.
    """
    if name in sys.modules:
        yield
        return
    importing, stand_in = True, types.ModuleType(name)

    def real() -> types.ModuleType:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return importlib.import_module(name)

    def attribute(wanted: str) -> Any:
        if not importing or wanted not in called:
            return getattr(real(), wanted)

        def function(*args: Any, **named: Any) -> Any:
            return getattr(real(), wanted)(*args, **named)

        return function

    stand_in.__dict__["__getattr__"] = attribute
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        importing = False
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
