"""Finds the Python function that a user names as ``module:function``: data, metrics.

The current working directory is importable, as with ``python -m``, so that a script beside the model can be named.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from .errors import GraphoptError, UsageError

_FORM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_callable_name(text: str) -> bool:
    """Whether ``text`` has the form ``module:function``."""
    return _FORM.fullmatch(text) is not None


def load_callable(text: str, error: type[GraphoptError] = UsageError) -> Callable[..., Any]:
    """Import and return the function that ``text`` (``module:function``) names.

    Args:
        text: What the user wrote.
        error: The type of error to raise: ``DataError`` where a function that yields data is named.

    Raises:
        GraphoptError: Of the type ``error``: not of that form, the module cannot be imported, or it has no such function (with
            the nearest names).
    """
    if not is_callable_name(text):
        raise error(f"{text!r} is not of the form module:function")
    module_name, _, name = text.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:
        hint = f"Python modules are looked for in {here} and where packages are installed."
        raise error(f"importing {module_name!r} failed: {_named(problem)}", where=text, hint=hint) from problem
    found = getattr(module, name, None)
    if callable(found):
        function: Callable[..., Any] = found
        return function
    near = difflib.get_close_matches(name, [key for key, value in vars(module).items() if callable(value)], n=1)
    what = "is not a function" if hasattr(module, name) else "does not exist"
    raise error(
        f"{name!r} {what} in {module.__file__ or module_name}", where=text, hint=f"Did you mean {near[0]!r}?" if near else None
    )


def call(function: Callable[..., Any], where: str, error: type[GraphoptError], *arguments: object) -> Any:
    """Call a user's function; what it raises becomes an ``error`` that names the exception."""
    try:
        return function(*arguments)
    except GraphoptError:
        raise
    except Exception as problem:
        raise error(f"raised {_named(problem)}", where=where, hint="-v shows the traceback.") from problem


def _named(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"
