"""Targets: what a device runs models with, as data (``targets/*.yaml``), validated when read.

A target names a runtime and a provider and how it wants to be driven; passes ask it what the device can do. A YAML file
of the same form may be given in place of a name.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import registry
from .errors import MissingError, UsageError

if TYPE_CHECKING:
    from .contracts import Runtime

_FOLDER = Path(__file__).parent / "targets"


class Target(BaseModel):
    """One device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    runtime: str = Field(description="name of a registered runtime")
    provider: str = Field(description="the runtime's execution provider that must run the model")
    provider_options: dict[str, str] = Field(default_factory=dict)
    threads: int = Field(default=1, ge=1, description="threads of a session when timed")
    clock: Literal["cpu", "wall"] = Field(default="wall", description="cpu: CPU time of a one-thread session is the gate")
    max_opset: int | None = Field(default=None, description="highest opset of the default domain that the runtime takes")


def names() -> list[str]:
    """Names of the targets that ship with graphopt, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache
def load(name: str) -> Target:
    """Return the target called ``name``, or the one in the YAML file of that path.

    Raises:
        UsageError: No such target, or its file is not valid.
    """
    path = _FOLDER / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
        if path.suffix not in {".yaml", ".yml"}:
            raise registry.unknown_name("target", name, names())
        if not path.is_file():
            raise UsageError("no such target file", where=name)
    return parse(path.read_text(encoding="utf-8"), str(path))


def runtime(target: Target) -> Runtime:
    """The runtime of a target that runs here.

    Raises:
        MissingError: It does not; the message says why and what would mend it.
    """
    found = registry.runtime(target.runtime)
    available = found.availability(target)
    if not available.ok:
        raise MissingError(f"the target {target.name!r} cannot run here: {available.why}", hint=available.hint or None)
    return found


def parse(text: str, where: str) -> Target:
    """Read a target from YAML.

    Raises:
        UsageError: Not YAML, or a field is unknown, missing or of the wrong type (named in the message).
    """
    try:
        fields: Any = yaml.safe_load(text)
        return Target.model_validate(fields)
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}", where=where) from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise UsageError(f"not a valid target: {problems}", where=where) from None
