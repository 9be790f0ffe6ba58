"""Targets: what a device runs models with, as data (``targets/*.yaml``), validated when read.

A target names a runtime and a provider and how it wants to be driven; passes ask it what the device can do
(``Quantization``: which integers, and which operators have kernels for them). A YAML file of the same form may be given in
place of a name; ``like: NAME`` in it takes over what it does not say itself.

A target that cannot run here is still data; using it is a MissingError that says why. One that runs here in another way than on
the device (a simulator, another processor family) has the device's answers but not its times: it is checked and not timed
(``Availability.timed``).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import registry
from .contracts import Availability
from .environment import environment
from .errors import MissingError, UsageError

if TYPE_CHECKING:
    from .contracts import Runtime

DEFAULT = "cpu"
"""The target that commands use when none is named."""
REFERENCE = "cpu"
"""The target whose answers count: what every other one's are compared with."""
GRADIENTS = "torch"
"""The target whose runtime has gradients."""
_FOLDER = Path(__file__).parent / "targets"
_AVX2_WIDTH, _WIDTH = 8, 16
"""Channels in a block of the layout in which onnxruntime convolves."""


class Quantization(BaseModel):
    """How a target wants integers: the style of ``quantize.*``. Operators are those of ONNX's own domain."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    activations: Literal["uint8", "int8", "uint16"] = Field(description="type of activations, per tensor")
    symmetric: bool = Field(default=False, description="whether the zero point of activations is the middle of their type")
    unsigned: bool = Field(
        default=False, description="whether an activation that is never negative is uint8 from zero on instead"
    )
    weights: Literal["int8"] = Field(default="int8", description="type of weights, symmetric")
    weight_bits: Literal[7, 8] = Field(default=8, description="7: two products fit in 16 bits together")
    saturates: bool = Field(default=False, description="whether a kernel may add two products of 8 bits in 16 bits")
    per_channel: bool = Field(default=True, description="whether each output channel of a weight has a scale of its own")
    bias: bool = Field(default=True, description="whether a bias becomes int32 with the scale of the products")
    fuses_activations: bool = Field(default=False, description="whether Relu before Q is fused whatever the zero point is")
    fills_gaps: bool = Field(default=False, description="whether a float weight between DQ and Q is quantized by the runtime")
    static: tuple[str, ...] = Field(default=(), description="operators with an integer kernel between Q and DQ")
    passing: tuple[str, ...] = Field(default=(), description="operators that hand integers on, between DQ and Q with one scale")
    direct: tuple[str, ...] = Field(default=(), description="likewise, but placed on the integers themselves")
    float_outputs: tuple[str, ...] = Field(default=(), description="those of static whose kernel can give floats for nothing")
    dynamic: tuple[str, ...] = Field(default=(), description="operators with a kernel that finds the scale of its input itself")


class Target(BaseModel):
    """One device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    runtime: str = Field(description="name of a registered runtime")
    provider: str = Field(description="the runtime's execution provider that must run the model")
    form: Literal["onnx", "ort"] = Field(default="onnx", description="what models are packaged as; ort: onnxruntime's own form")
    provider_options: dict[str, str] = Field(default_factory=dict)
    plugin: str | None = Field(default=None, description="Python package whose get_library_path() is the provider's library")
    device: str | None = Field(default=None, description="which of the plugin's devices: CPU, GPU or NPU")
    simulator: str | None = Field(default=None, description="device that simulates it where it is not: checked and not timed")
    fallbacks: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="providers with options that may take what the first one leaves, before the CPU"
    )
    precision: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="type that float32 is computed in: how near the answers must be"
    )
    extra: str | None = Field(default=None, description="extra of graphopt that brings what the target needs")
    system: str | None = Field(default=None, description="the only operating system that runs it, as platform.system() says")
    machine: str | None = Field(default=None, description="the only processor family that runs it, as platform.machine() says")
    elsewhere: Literal["missing", "untimed"] = Field(
        default="missing", description="on another processor family: it cannot run, or answers are checked and nothing is timed"
    )
    isa: tuple[str, ...] = Field(default=(), description="instruction sets of which the processor must have at least one")
    batch: int = Field(default=1, ge=1, description="samples in a run when timed")
    threads: int = Field(default=1, ge=1, description="threads of a session when timed")
    clock: Literal["cpu", "wall"] = Field(default="wall", description="cpu: CPU time of a one-thread session is the gate")
    max_opset: int | None = Field(default=None, description="highest opset of the default domain that the runtime takes")
    operators: str | None = Field(default=None, description="table of the operators that the provider takes, where it is not")
    fixed_shapes: bool = Field(default=False, description="whether the provider takes only nodes whose shapes are all known")
    types: tuple[str, ...] = Field(default=(), description="element types that the provider computes with; none: not known")
    slow_kernels: tuple[str, ...] = Field(default=(), description="fused kernels that take longer than what they replace")
    vector_width: int | None = Field(
        default=None, ge=1, description="channels that a kernel computes at once: one more costs as many; None: as here"
    )
    quantization: Quantization | None = Field(default=None, description="None: nothing is known of integers on the target")

    @property
    def channels_at_once(self) -> int:
        """``vector_width``; where the target leaves it open, that of this machine: 8 floats with AVX2, else 16."""
        if self.vector_width is not None:
            return self.vector_width
        isa = environment().isa
        return _AVX2_WIDTH if "avx2" in isa and "avx512f" not in isa else _WIDTH


def names() -> list[str]:
    """Names of the targets that ship with graphopt, sorted."""
    return registry.defined(_FOLDER)


@cache
def load(name: str) -> Target:
    """Return the target called ``name``, or the one in the YAML file of that path.

    Raises:
        UsageError: No such target, or its file is not valid.
    """
    path, text = registry.definition("target", name, _FOLDER)
    return parse(text, str(path))


def runtime(target: Target) -> Runtime:
    """The runtime of a target that runs here.

    Raises:
        MissingError: It does not; the message says why and what would mend it.
    """
    available = availability(target)
    if not available.ok:
        raise MissingError(f"the target {target.name!r} cannot run here: {available.why}", hint=available.hint or None)
    return registry.runtime(target.runtime)


def availability(target: Target) -> Availability:
    """Whether a target runs here: on this machine, and with what is installed; found by running a model of one node."""
    here = platform.machine()
    foreign = target.machine not in {None, here}
    problem = None
    if target.system not in {None, platform.system()}:
        problem = f"it is for {_called(target.system)}, and this is {_called(platform.system())}"
    elif foreign and target.elsewhere == "missing":
        problem = f"it is for {target.machine} processors, and this one is {here}"
    elif target.isa and not {*target.isa} & {*environment().isa}:
        problem = f"it needs a processor with {' or '.join(target.isa)}, which this one does not have"
    if problem is not None:
        return Availability(ok=False, why=problem, hint="Run graphopt there; for use here, choose another target.")
    if target.runtime not in registry.runtime_names():
        known = ", ".join(registry.runtime_names())
        why = f"no runtime called {target.runtime!r} is installed (there is {known})"
        return Availability(ok=False, why=why, hint=install_line(target))
    try:
        found = registry.runtime(target.runtime).availability(target)
    except MissingError as error:
        return Availability(ok=False, why=error.what, hint=error.hint or install_line(target))
    if found.ok and foreign:
        why = f"it is for {target.machine} processors, and this one is {here}: answers are checked here, and nothing is timed"
        return replace(found, timed=False, why=why)
    return found


def _called(system: str | None) -> str:
    """An operating system as people call it."""
    return "macOS" if system == "Darwin" else str(system)


def is_reference(target: Target) -> bool:
    """Whether a target runs models just as ``REFERENCE`` does, so that it has nothing to be compared with."""
    reference = load(REFERENCE)
    how = ("runtime", "provider", "provider_options", "plugin")
    return all(getattr(target, name) == getattr(reference, name) for name in how)


def install_line(target: Target) -> str:
    """What brings that which a target needs; empty when graphopt has no extra for it."""
    return f"pip install 'graphopt[{target.extra}]'" if target.extra is not None else ""


def parse(text: str, where: str) -> Target:
    """Read a target from YAML.

    Raises:
        UsageError: Not YAML, or a field is unknown, missing or of the wrong type (named in the message).
    """
    try:
        fields: Any = registry.from_yaml(text)
        if isinstance(fields, dict) and "like" in fields:
            fields = _inherited(fields, where)
        return Target.model_validate(fields)
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}", where=where) from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise UsageError(f"not a valid target: {problems}", where=where) from None


def _inherited(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields with those of the shipped target that they are ``like``; the style of integers is merged field by field."""
    own = {name: value for name, value in fields.items() if name != "like"}
    if fields["like"] not in names() or Path(where) == _FOLDER / f"{fields['like']}.yaml":
        raise UsageError(f"is like {fields['like']!r}, which is no target that ships with graphopt", where=where)
    base = load(fields["like"]).model_dump(exclude_unset=True)
    if isinstance(own.get("quantization"), dict):
        own["quantization"] = {**(base.get("quantization") or {}), **own["quantization"]}
    return {**base, **own}
