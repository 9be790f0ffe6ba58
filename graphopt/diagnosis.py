"""What is installed here, what works (found by running it), what clashes, and the line that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from typing import Literal

from pydantic import BaseModel

from . import __version__, registry, targets
from .environment import environment, installed
from .errors import GraphoptError

# The distribution that each extra brings.
_EXTRAS = {"cpu": "onnxruntime", "images": "pillow"}


class Finding(BaseModel):
    """One line of the diagnosis. ``mend`` is what to do about it, empty when there is nothing to do."""

    what: str
    state: Literal["ok", "absent", "broken"]
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Look at everything; takes about a second, since runtimes are tried by running a model."""
    return [*_machine(), *_clashes(packages_distributions()), *_extras(), *_passes(), *_targets()]


def _machine() -> Iterator[Finding]:
    here = environment()
    yield Finding(what="graphopt", state="ok", found=__version__)
    yield Finding(what="python", state="ok", found=f"{here.python} on {here.os}")
    yield Finding(what="processor", state="ok", found=f"{here.cpu}, {here.cores} cores, {' '.join(here.isa)}")
    yield Finding(what="onnx", state="ok", found=f"{here.onnx}, onnx-ir {here.onnx_ir}, numpy {here.numpy}")


def _clashes(provided: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Two distributions that install the same module overwrite each other's files, and pip does not notice."""
    rivals = sorted(set(provided.get("onnxruntime", [])))
    if len(rivals) < 2:
        return
    yield Finding(
        what="onnxruntime",
        state="broken",
        found=f"{' and '.join(rivals)} both provide the module onnxruntime: one has overwritten the other",
        mend=f"pip uninstall -y {' '.join(rivals)} && pip install --force-reinstall ONE_OF_THEM",
    )


def _extras() -> Iterator[Finding]:
    for extra, distribution in _EXTRAS.items():
        version = installed(distribution) or (environment().onnxruntime if distribution == "onnxruntime" else None)
        yield Finding(
            what=f"extra {extra}",
            state="ok" if version else "absent",
            found=f"{distribution} {version}" if version else f"{distribution} is not installed",
            mend="" if version else f"pip install 'graphopt[{extra}]'",
        )


def _passes() -> Iterator[Finding]:
    for name in registry.pass_names():
        try:
            registry.pass_class(name)
        except GraphoptError as error:
            yield Finding(what=f"pass {name}", state="broken", found=error.what, mend=error.hint or "")
        else:
            yield Finding(what=f"pass {name}", state="ok", found="loads")


def _targets() -> Iterator[Finding]:
    for name in targets.names():
        target = targets.load(name)
        try:
            here = targets.availability(target)
        except GraphoptError as error:
            yield Finding(what=f"target {name}", state="broken", found=error.what, mend=error.hint or "")
            continue
        state: Literal["ok", "absent", "broken"] = "ok" if here.ok else "broken" if name == targets.DEFAULT else "absent"
        found = f"a model ran on {target.runtime} {here.version}" if here.ok else here.why
        yield Finding(what=f"target {name}", state=state, found=found, mend=here.hint)
