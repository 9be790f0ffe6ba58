"""Finds passes and runtimes through entry points, recipes and targets among YAML files; only here is known where they are.

The core imports no pass and no runtime by name. Both groups are open: an installed package that names a subclass of ``Pass``,
``LossyPass`` or ``Runtime`` under ``graphopt.passes`` or ``graphopt.runtimes`` is listed and used like the ones that ship here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingError, UsageError

if TYPE_CHECKING:
    from .contracts import LossyPass, Pass, Runtime

PASSES = "graphopt.passes"
RUNTIMES = "graphopt.runtimes"


def pass_names() -> list[str]:
    """Names of all installed passes, sorted."""
    return sorted(_entries(PASSES))


def pass_class(name: str) -> type[Pass] | type[LossyPass]:
    """The class of the pass called ``name``.

    Raises:
        UsageError: No such pass (with the nearest names), or what is registered under the name is not a pass.
        MissingError: The package that provides it cannot be imported.
    """
    from .contracts import BasePass

    found: type[Pass] | type[LossyPass] = _load(PASSES, "pass", name, BasePass)
    return found


def runtime_names() -> list[str]:
    """Names of all installed runtimes, sorted."""
    return sorted(_entries(RUNTIMES))


@cache
def runtime(name: str) -> Runtime:
    """The one instance of the runtime called ``name``.

    Raises:
        UsageError: No such runtime.
        MissingError: The package that provides it cannot be imported.
    """
    from .contracts import Runtime

    found: Runtime = _load(RUNTIMES, "runtime", name, Runtime)()
    return found


def definition(kind: str, name: str, folder: Path) -> tuple[Path, str]:
    """The YAML file that defines ``name``, and its text: one that ships in ``folder``, or the file of that path.

    Raises:
        UsageError: No such name (with the nearest ones) or file, or it cannot be read.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
        if path.suffix not in {".yaml", ".yml"}:
            raise unknown_name(kind, name, defined(folder))
        if not path.is_file():
            raise UsageError(f"no such {kind} file", where=name)
    try:
        return path, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the {kind}: {error}", where=name) from None


def from_yaml(text: str) -> Any:
    """What a YAML text holds; read by libyaml where PyYAML has it, in a fifth of the time.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    import yaml

    return yaml.load(text, yaml.CSafeLoader) if yaml.__with_libyaml__ else yaml.safe_load(text)


def defined(folder: Path) -> list[str]:
    """Names of what YAML files that ship in ``folder`` define, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that does not exist: with the nearest names, or all of them when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        hint = f"Did you mean {' or '.join(repr(n) for n in near)}?"
    else:
        hint = f"Known: {', '.join(known)}." if known else f"There is no {kind} at all."
    return UsageError(f"unknown {kind} {name!r}", hint=hint)


@cache
def _entries(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


@cache
def _load(group: str, kind: str, name: str, base: type) -> Any:
    entries = _entries(group)
    if name not in entries:
        raise unknown_name(kind, name, entries)
    try:
        loaded = entries[name].load()
    except ImportError as error:
        raise MissingError(f"the {kind} {name!r} cannot be imported: {error}", where=entries[name].value) from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UsageError(f"{entries[name].value} is registered as {kind} {name!r} but is not a {base.__name__}")
    return loaded
