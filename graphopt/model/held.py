"""Small tensors of a model's own message, parsed once.

The library's tensor of a TensorProto parses type, shape and contents whenever one of them is asked for, and its other tensors
compute their size anew each time. Rewrites ask thousands of times.
"""

from __future__ import annotations

from functools import cache
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


class HeldTensor(ir.Tensor[np.ndarray]):
    """A tensor of whole bytes an element, in memory, that knows its size."""

    def __init__(self, array: np.ndarray, dtype: ir.DataType, **described: Any) -> None:
        super().__init__(array, dtype, shape=ir.Shape(array.shape, frozen=True), **described)

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.numpy().size

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.numpy().nbytes

    def tobytes(self) -> bytes:
        """The elements as ONNX stores them."""
        return self.numpy().astype(stored(self.dtype), copy=False).tobytes()


def held(proto: onnx.TensorProto) -> ir.TensorProtocol:
    """The tensor of a valid TensorProto that holds its data; strings and packed types as the library has them."""
    dtype = ir.DataType(proto.data_type)
    if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
        return ir.serde.deserialize_tensor(proto)
    if proto.HasField("raw_data"):
        return HeldTensor(np.frombuffer(proto.raw_data, stored(dtype)).reshape(proto.dims), dtype, **described(proto))
    field = _FIELDS.get(dtype)
    if field is None:
        array = ir.serde.deserialize_tensor(proto).numpy()
    else:
        array = np.array(getattr(proto, field), stored(dtype)).reshape(proto.dims)
    return HeldTensor(array, dtype, **described(proto))


def described(proto: onnx.TensorProto) -> dict[str, Any]:
    """What a TensorProto says of itself, as all tensor classes take it."""
    return {
        "name": proto.name,
        "doc_string": proto.doc_string or None,
        "metadata_props": {entry.key: entry.value for entry in proto.metadata_props},
    }


@cache
def stored(dtype: ir.DataType) -> np.dtype:
    """NumPy's type for the bytes of an element type as ONNX stores them."""
    return np.dtype(dtype.numpy()).newbyteorder("<")
