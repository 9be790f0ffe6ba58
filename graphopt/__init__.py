"""graphopt: ONNX in, a smaller or faster ONNX out, with the evidence.

``optimize`` is the whole job; the command line calls it. Importing this package imports none of the heavy libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import GraphoptError
    from .model import load, save
    from .pipeline import optimize

__all__ = ["GraphoptError", "__version__", "load", "optimize", "save"]
__version__ = "0.1.0"

_HOME = {"GraphoptError": "errors", "load": "model", "save": "model", "optimize": "pipeline"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
