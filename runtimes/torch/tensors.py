"""Torch, imported when it is first used; and arrays to tensors and back.

``torch`` and ``functional`` stand for the modules: what is asked of them imports torch then, so that tables may name it.
"""

from __future__ import annotations

import importlib
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.errors import MissingError, ModelError

Tensor: TypeAlias = Any
"""A ``torch.Tensor``; torch is not installed where types are checked."""
HINT = "pip install 'graphopt[torch]'"
_SMALL = {ir.DataType.INT4: ir.DataType.INT8, ir.DataType.UINT4: ir.DataType.UINT8}
"""Types that torch lacks, and the ones that their numbers are kept in."""
_NAMES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.BOOL: "bool",
    **{kind: kind.name.lower() for kind in ir.DataType if kind.name.lower() in {"int8", "int16", "int32", "int64"}},
    **{kind: kind.name.lower() for kind in ir.DataType if kind.name.lower() in {"uint8", "uint16", "uint32", "uint64"}},
    ir.DataType.INT4: "int8",
    ir.DataType.UINT4: "uint8",
}


class _Lazy:
    """A module of torch that is imported when something is asked of it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        try:
            module = importlib.import_module(self._name)
        except ImportError as error:
            raise MissingError(f"torch cannot be imported: {error}", hint=HINT) from error
        return getattr(module, attribute)


torch: Any = _Lazy("torch")
functional: Any = _Lazy("torch.nn.functional")


def dtype(kind: ir.DataType | int) -> Any:
    """Torch's type of numbers for ONNX's.

    Raises:
        ModelError: Torch has none.
    """
    kind = ir.DataType(kind)
    if kind not in _NAMES:
        raise ModelError(f"torch does not compute with {kind.name.lower()}")
    return getattr(torch, _NAMES[kind])


def from_array(array: Array, kind: ir.DataType | None = None) -> Tensor:
    """A tensor of its own with the numbers of an array (bfloat16 and int4 as ``ml_dtypes`` has them).

    Raises:
        ModelError: Torch lacks the type.
    """
    kind = kind or ir.DataType.from_numpy(array.dtype)
    wanted = dtype(kind)
    if kind == ir.DataType.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(wanted)
    if kind in _SMALL:
        array = array.astype(_SMALL[kind].numpy())
    return torch.from_numpy(np.array(array, order="C"))


def to_array(tensor: Tensor, wanted: np.dtype) -> Array:
    """An array with the numbers of a tensor, in the type that the model says."""
    plain = tensor.detach()
    if plain.dtype == torch.bfloat16:
        plain = plain.float()  # exact
    array: Array = plain.numpy()
    return array if array.dtype == wanted else array.astype(wanted)
