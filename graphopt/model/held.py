"""Small tensors of a model's own message, parsed once.

The library's tensor of a TensorProto parses type, shape and contents whenever one of them is asked for, and its other tensors
compute their size anew each time. Rewrites ask thousands of times.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir


class HeldTensor(ir.Tensor[np.ndarray]):
    """A tensor of whole bytes an element, in memory, that knows its size."""

    def __init__(self, array: np.ndarray, dtype: ir.DataType, like: ir.TensorProtocol) -> None:
        shape = ir.Shape(array.shape, frozen=True)
        metadata = dict(like.metadata_props)
        super().__init__(array, dtype, shape=shape, name=like.name, doc_string=like.doc_string, metadata_props=metadata)

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.numpy().size

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.numpy().nbytes


def held(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor like one that is still a TensorProto; others, strings and packed types as they are."""
    if not isinstance(tensor, ir.TensorProtoTensor):
        return tensor
    proto, dtype = tensor.raw, tensor.dtype
    if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
        return tensor
    if proto.HasField("raw_data"):
        return HeldTensor(np.frombuffer(proto.raw_data, stored(dtype)).reshape(proto.dims), dtype, tensor)
    return HeldTensor(tensor.numpy(), dtype, tensor)


@cache
def stored(dtype: ir.DataType) -> np.dtype:
    """NumPy's type for the bytes of an element type as ONNX stores them."""
    return np.dtype(dtype.numpy()).newbyteorder("<")
