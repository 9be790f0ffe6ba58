"""What is installed here, what works (found by running it), what clashes, and the line that mends it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions, requires
from typing import Literal

from pydantic import BaseModel

from . import __version__, registry, targets
from .environment import environment, installed, no_telemetry
from .errors import GraphoptError

_REQUIREMENT = re.compile(r"^(?P<name>[\w.-]+)(?:\[[^]]*\])?\s*\(?(?P<bound>[^;)]*)\)?\s*(?:;\s*(?P<marker>.*))?$")
_EXTRA = re.compile(r"""extra\s*==\s*['"](?P<extra>[\w.-]+)['"]""")
_FOR_DEVELOPERS = {"dev"}
_PLUGINS = ("onnxruntime-qnn", "onnxruntime-ep-openvino", "onnxruntime-ep-webgpu")
"""Packages that load into onnxruntime, and so need a certain version of it."""


class Finding(BaseModel):
    """One line of the diagnosis. ``mend`` is what to do about it, empty when there is nothing to do."""

    what: str
    state: Literal["ok", "absent", "broken"]
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Look at everything; takes a few seconds, since runtimes are tried by running a model."""
    no_telemetry()
    provided = packages_distributions()
    return [*_machine(), *_clashes(provided), *_extras(provided), *_plugins(), *_passes(), *_targets()]


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
    kept = next(name for name in reversed(rivals) if name != "onnxruntime")  # who installed it wanted what it has more
    yield Finding(
        what="onnxruntime",
        state="broken",
        found=f"{' and '.join(rivals)} both provide the module onnxruntime: one has overwritten the other",
        mend=f"pip uninstall -y {' '.join(rivals)} && pip install {kept}",
    )


def _extras(provided: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Each extra of graphopt: whether what it brings is here, is new enough and can be imported."""
    brings: dict[str, list[str]] = {}
    for line in requires("graphopt") or []:
        marked = _EXTRA.search(line)
        if marked is not None and marked["extra"] not in _FOR_DEVELOPERS:
            brings.setdefault(marked["extra"], []).append(line)
    for extra, lines in sorted(brings.items()):
        names = [_name(line) for line in lines]
        missing = [name for name in names if installed(name) is None]
        mend = f"pip install 'graphopt[{extra}]'"
        if "onnxruntime-gpu" in missing and installed("onnxruntime") is not None:
            mend = f"pip uninstall -y onnxruntime && {mend}"
        if missing:
            found = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
            yield Finding(what=f"extra {extra}", state="absent", found=found, mend=mend)
        elif (problem := _unmet(lines) or _unimportable(names, provided)) is not None:
            yield Finding(what=f"extra {extra}", state="broken", found=problem, mend=f"{mend} --force-reinstall")
        else:
            yield Finding(what=f"extra {extra}", state="ok", found=", ".join(f"{name} {installed(name)}" for name in names))


def _plugins() -> Iterator[Finding]:
    """Packages that load into onnxruntime: whether the one that is here is new enough for them."""
    for name in _PLUGINS:
        lines = requires(name) or [] if installed(name) is not None else []
        problem = _unmet([line for line in lines if _EXTRA.search(line) is None and _name(line) == "onnxruntime"])
        if problem is not None:
            yield Finding(what=name, state="broken", found=problem, mend=f"pip install -U onnxruntime {name}")


def _name(requirement: str) -> str:
    matched = _REQUIREMENT.match(requirement)
    return matched["name"] if matched is not None else requirement


def _unmet(requirements: Sequence[str]) -> str | None:
    """Which of the lower bounds is not met, in words."""
    for line in requirements:
        matched = _REQUIREMENT.match(line)
        bound = re.search(r">=\s*([\d.]+)", matched["bound"]) if matched is not None else None
        found = installed(matched["name"]) if matched is not None else None
        if matched is not None and bound is not None and found is not None and _release(found) < _release(bound[1]):
            return f"{matched['name']} {found} is too old: {bound[1]} is needed"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _unimportable(distributions: Sequence[str], provided: Mapping[str, list[str]]) -> str | None:
    """Which module of these distributions cannot be imported, in words."""
    for module, owners in provided.items():
        if set(owners) & set(distributions) and module.isidentifier() and not module.startswith("_"):
            try:
                importlib.import_module(module)
            except Exception as error:  # whatever a broken installation raises
                return f"{module} cannot be imported: {error}"
    return None


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
        ran = f"a model ran on {target.runtime} {here.version}".rstrip()
        found = here.why if not here.ok else ran if here.timed else f"{ran}; {here.why}"
        yield Finding(what=f"target {name}", state=state, found=found, mend=here.hint)
