"""What a runtime must provide."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from .values import Array, Feed, Progress, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.targets import Target

NodeInput: TypeAlias = "tuple[ir.Node, int]"
"""What a node reads at one of its inputs."""


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can run a target here. When not: ``why``, and the line that would mend it (``hint``)."""

    ok: bool
    version: str = ""
    why: str = ""
    hint: str = ""
    timed: bool = True
    """Whether times mean anything: not in a simulator, or on another processor than the device's (``why`` says which)."""


@dataclass(frozen=True)
class NodeTime:
    """Median time of one node of the graph as the runtime executes it, per run of the model."""

    name: str
    op_type: str
    provider: str
    milliseconds: float
    origin: str = ""
    """Name of the model's node that it was made of, or of a value that this one computes; of several fused ones, the last."""
    integer: bool = False
    """Whether the kernel computes in integers."""


@dataclass(frozen=True)
class Partition:
    """Which provider takes how many nodes, and which nodes stay behind (name, operator, provider) on another one."""

    nodes: Mapping[str, int]
    left_behind: Sequence[tuple[str, str, str]] = ()
    parts: int | None = None
    """Into how many pieces the nodes fall that the provider takes, each with a hand-over before and after; None: not known."""


@dataclass(frozen=True)
class Example:
    """One call of a model: what it is given, and what it answers on onnxruntime's CPU provider."""

    feed: Feed
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Packaged:
    """What a runtime put into a package besides the model, or in place of it."""

    outputs: Mapping[str, Array]
    """What the files in the folder, loaded as the device loads them, answer to the example."""
    readme: str
    """How to use them there, in Markdown; its headings are of the second level."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the manifest says of the choices that were made; JSON can hold it."""
    notes: Sequence[str] = ()
    """What the user should know, one sentence each."""


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs. One thread is what timing by CPU time needs (``timing.py``)."""

    threads: int = 1
    optimize: bool = True
    """Whether the runtime may apply its own graph optimizations, as it would when deployed."""


class Session(abc.ABC):
    """A model that is loaded and can be run. A context manager; ``close`` frees its memory."""

    provider: str
    """The execution provider that really runs the model, read back after loading."""
    clock: Literal["cpu", "wall"] = "wall"
    """Which clock is trustworthy for this session: CPU time of the thread that computes, or wall time."""
    threads: int = 1
    load_seconds: float
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    partition: Partition | None = None
    """Which provider runs which nodes, read back after loading; None when the runtime does not tell."""

    @abc.abstractmethod
    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            ModelError: The runtime refused the feed or failed in a node (named in the message).
        """

    def time(self, feed: Mapping[str, Array], repeats: int) -> tuple[float, float]:
        """CPU seconds and wall seconds of one run: the mean of at least this many, one after the other.

        Here they are those of the calling thread. An engine in another process measures there, so that what it takes to reach
        it is not counted.

        Raises:
            ModelError, DataError: As ``run``.
        """
        wall, cpu = time.perf_counter(), time.thread_time()
        for _ in range(repeats):
            self.run(feed)
        return (time.thread_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats

    def accepts(self, feed: Mapping[str, Array]) -> bool:
        """Whether the feed can be run, found by running it."""
        from graphopt.errors import GraphoptError

        try:
            self.run(feed)
        except GraphoptError:
            return False
        return True

    def close(self) -> None:  # noqa: B027 - a runtime with nothing to free need not say so
        """Free what the session holds; it cannot run afterwards."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Network(Protocol):
    """A model that is executed with gradients; tensors are torch's (``Any`` here: the core does not import it)."""

    @property
    def weights(self) -> Mapping[ir.Value, Any]:
        """Leaves, by the model's own values: what is to be trained is made to require a gradient."""
        ...

    def run(
        self,
        feed: Mapping[str, Any],
        through: Mapping[NodeInput, Callable[[Any], Any]] | None = None,
        keep: Collection[ir.Value] = (),
    ) -> dict[ir.Value, Any]:
        """The outputs and the values to be kept; ``through`` changes what a node is given at an input.

        Raises:
            ModelError: A node fails.
        """
        ...


class Runtime(abc.ABC):
    """An engine. One instance per process, created without arguments; heavy imports happen inside the methods."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self) -> None:
        self._asked: dict[tuple[object, ...], Availability] = {}

    @abc.abstractmethod
    def find(self, target: Target) -> Availability:
        """What would run the target: its version, and whether its times mean anything. Nothing has run on it yet.

        Raises:
            MissingError: It is not here; with the line that would mend it.
        """

    @abc.abstractmethod
    def load(self, model: Path, target: Target, options: SessionOptions) -> Session:
        """Load the file, on a target that was found here.

        Raises:
            ModelError: The runtime cannot load the model; the message names the node where it can.
            MissingError: Another provider than the target's would run it.
        """

    def availability(self, target: Target) -> Availability:
        """Whether the target really runs here, found by running something; asked once for each way of running models."""
        from graphopt.probe import probe

        options = sorted(target.provider_options.items())
        how = (target.provider, target.plugin, target.device, target.simulator, target.threads, *options)
        if how not in self._asked:
            self._asked[how] = probe(self, target)
        return self._asked[how]

    def require(self, target: Target) -> None:
        """Refuse a target that does not run here.

        Raises:
            MissingError: With the reason, and the line that would mend it.
        """
        from graphopt.errors import MissingError

        available = self.availability(target)
        if not available.ok:
            raise MissingError(available.why, where=f"target {target.name}", hint=available.hint or None)

    def open(self, model: Path, target: Target, options: SessionOptions = SessionOptions()) -> Session:
        """Load the file on the target.

        Raises:
            ModelError: As ``load``.
            MissingError: As ``require`` and ``load``.
        """
        self.require(target)
        return self.load(model, target, options)

    @abc.abstractmethod
    def profile(self, model: Path, target: Target, feed: Feed, rounds: int = 10) -> Sequence[NodeTime]:
        """Time per node, in the graph that the runtime made of the model."""

    @abc.abstractmethod
    def partition(self, model: Path, target: Target) -> Partition:
        """Which nodes the target's provider takes."""

    def network(self, model: ir.Model) -> Network:
        """The model with gradients; its nodes and values must stay as they are.

        Raises:
            ModelError: The runtime cannot differentiate it, or any model.
        """
        from graphopt.errors import ModelError

        del model
        raise ModelError(f"the runtime {self.name!r} has no gradients")

    def package(self, model: Path, target: Target, folder: Path, example: Example, progress: Progress) -> Packaged | None:
        """Make of the folder what the device needs: it holds the model (``model``) and nothing else so far.

        The model may be replaced by another form of it. None: the model is all that is needed.

        Raises:
            ModelError: The model cannot be brought into the form, or what came out cannot be run.
            MissingError: What makes the package is not here.
        """
        del model, target, folder, example, progress
        return None
