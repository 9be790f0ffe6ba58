"""Small tensors of a model's own message: their bytes, and an array once it is asked for.

The library's tensor of a TensorProto parses type, shape and contents whenever one of them is asked for, and its other tensors
compute their size anew each time. Rewrites ask thousands of times.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.INT32: "int32_data",
    ir.DataType.INT64: "int64_data",
}
"""The fields that hold numbers of a type as they are; in others they are packed or converted."""


class HeldTensor(ir.LazyTensor):
    """A tensor of whole bytes an element, in memory as ONNX stores it, that knows its size."""

    def __init__(self, data: bytes, dtype: ir.DataType, shape: ir.Shape, **described: Any) -> None:
        super().__init__(partial(_tensor, data, dtype, shape), dtype, shape, **described)
        self._data = data
        self._array: np.ndarray | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.numpy().size

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return len(self._data)

    def numpy(self) -> np.ndarray:
        """The elements."""
        if self._array is None:
            self._array = _array(self._data, self.dtype, self.shape)
        return self._array

    def tobytes(self) -> bytes:
        """The elements as ONNX stores them."""
        return self._data


def _array(data: bytes, dtype: ir.DataType, shape: ir.Shape) -> np.ndarray:
    return np.frombuffer(data, stored(dtype)).reshape(shape.numpy())


def _tensor(data: bytes, dtype: ir.DataType, shape: ir.Shape) -> ir.TensorProtocol:
    return ir.Tensor(_array(data, dtype, shape), dtype, shape=shape)


def held(proto: onnx.TensorProto, dtype: ir.DataType, shape: ir.Shape) -> ir.TensorProtocol:
    """The tensor of a valid TensorProto of this type and shape that holds its data.

    Strings and packed types are as the library has them.
    """
    if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
        return ir.serde.deserialize_tensor(proto)
    if proto.HasField("raw_data"):
        data = proto.raw_data
    elif dtype in _FIELDS:
        data = np.array(getattr(proto, _FIELDS[dtype]), stored(dtype)).tobytes()
    else:
        data = ir.serde.deserialize_tensor(proto).tobytes()
    return HeldTensor(data, dtype, shape, **described(proto))


def described(proto: onnx.TensorProto) -> dict[str, Any]:
    """What a TensorProto says of itself, as all tensor classes take it."""
    return {
        "name": proto.name,
        "doc_string": proto.doc_string or None,
        "metadata_props": {entry.key: entry.value for entry in props} if (props := proto.metadata_props) else None,
    }


@cache
def stored(dtype: ir.DataType) -> np.dtype:
    """NumPy's type for the bytes of an element type as ONNX stores them."""
    return np.dtype(dtype.numpy()).newbyteorder("<")
