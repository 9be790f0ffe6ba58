"""Let Python's garbage collector wait while many objects are made at once.

The collector looks through all objects that there are whenever so many more have been made than freed; reading or rewriting a
graph makes little else than objects that stay. A fifth of the time went there. What is freed by reference counts, as all
large arrays are, is freed as ever.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_later() -> Iterator[None]:
    """No collection begins while the context is open; also good as a decorator."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
