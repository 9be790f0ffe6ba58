"""What an operator's function is given besides its inputs, and how these functions are found.

    rule(call, *inputs) -> output | outputs        tensors of torch; an input that is left out is None

Each module here has a table of its operators: one line for most. What later versions of an operator take as inputs and earlier
ones as attributes is asked of ``Call.numbers``, so that one function serves all versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graphs import site

from .tensors import Tensor

Rule: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """One node: its attributes, the version of its domain, and how the graphs in its attributes are run."""

    node: ir.Node
    opset: int
    attributes: Mapping[str, ir.Attr]
    run: Callable[[ir.Graph, Sequence[Tensor]], list[Tensor]]
    """Runs a graph of the node with these inputs; what it captures is seen to."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an attribute: a number, a text, a list of either, a tensor, a graph."""
        found = self.attributes.get(name)
        return default if found is None else found.value

    def text(self, name: str, default: str = "") -> str:
        """The value of an attribute that is a text."""
        found = self.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def numbers(self, name: str, given: Tensor | None = None) -> list[Any] | None:
        """A list that is an input, or an attribute where it is none; None where it is neither."""
        if given is not None:
            return [*given.reshape(-1).tolist()]
        found = self.get(name)
        return None if found is None else [*found] if isinstance(found, list | tuple) else [found]

    def refuse(self, what: str) -> NoReturn:
        """Say that the node wants something that is not there.

        Raises:
            ModelError: Always.
        """
        raise ModelError(f"{self.node.op_type} is not run in torch {what}", where=f"node {site(self.node)!r}")


def axis_of(call: Call, tensor: Tensor, default: int) -> int:
    """The attribute ``axis``, from the front."""
    axis = int(call.get("axis", default))
    return axis + tensor.ndim if axis < 0 else axis
