"""Whether a TensorProto's data fit its type and shape, wherever they are: raw, in a typed field, in another file, or sparse.

Readers trust these sizes: a tensor that is too short is zero-filled, or read past its end.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import ModelError

from .external import DataFiles

_DENSE_LIMIT_BYTES = 1 << 30
_COMPLEX = {ir.DataType.COMPLEX64, ir.DataType.COMPLEX128}
_INDEX_BYTES = 8
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
# The typed field that holds each type; all others are stored in int32_data.
_FIELD_OF = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.STRING: "string_data",
}


def check(tensor: onnx.TensorProto, files: DataFiles) -> None:
    """Check one tensor.

    Raises:
        ModelError: Its type or a dimension is not valid, or its data are missing or do not fit. The message does not
            name the tensor.
    """
    dtype = data_type(tensor.data_type)
    dims = tensor.dims[:]
    for dim in dims:
        if dim < 0:
            raise ModelError(f"it has a negative dimension: {dims}")
    count = math.prod(dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, dtype, count, files)
        return
    given = {name: entries for name in _FIELDS if (entries := len(getattr(tensor, name)))}
    if tensor.HasField("raw_data"):
        if dtype == ir.DataType.STRING:
            raise ModelError("it holds strings as raw data, which ONNX does not allow")
        size, needed, unit = len(tensor.raw_data), _bytes(dtype, count), "bytes"
        if given:
            raise ModelError(f"it holds its data twice, raw and as {next(iter(given))}")
    else:
        field = _FIELD_OF.get(dtype, "int32_data")
        wrong = sorted(given.keys() - {field})
        if wrong:
            raise ModelError(f"it is of type {dtype.name} but holds {wrong[0]}")
        size, needed, unit = given.get(field, 0), _entries(dtype, count), "values"
    if size != needed:
        raise ModelError(f"it holds {size} {unit}, but its shape {dims} and type {dtype.name} need {needed}")


@cache
def data_type(number: int) -> ir.DataType:
    """The type of that number.

    Raises:
        ModelError: There is none.
    """
    try:
        dtype = ir.DataType(number)
    except ValueError:
        raise ModelError(f"its type is number {number}, which ONNX does not define") from None
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError("it has no type")
    return dtype


SPARSE = "graphopt.sparse"
"""In the metadata of a tensor: its zeros need not be stored (``saving``)."""


def dense(sparse: onnx.SparseTensorProto, files: DataFiles) -> onnx.TensorProto:
    """The same tensor with its zeros.

    Raises:
        ModelError: The values or the indices are not valid, or the tensor would be larger than 1 GB. The message does
            not name the tensor.
    """
    values, indices, shape = sparse.values, sparse.indices, tuple(sparse.dims)
    check(values, files)
    check(indices, files)
    for part in (values, indices):
        if part.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError("it is sparse with external data, which graphopt does not read")
    dtype = data_type(values.data_type)
    if not shape or min(shape) <= 0:
        raise ModelError(f"it is sparse with a shape that is not positive: {list(shape)}")
    if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
        raise ModelError(f"it is sparse and of type {dtype.name}, which graphopt does not read")
    if math.prod(shape) * dtype.itemsize > _DENSE_LIMIT_BYTES:
        raise ModelError(f"it is sparse, and would take more than 1 GB when its zeros are stored: {list(shape)}")
    places = _linear(indices, shape, len(values.dims) == 1 and values.dims[0])
    full = np.zeros(math.prod(shape), dtype.numpy())
    full[places] = ir.serde.TensorProtoTensor(values).numpy()
    raw = full.astype(full.dtype.newbyteorder("<"), copy=False).tobytes()
    made = onnx.TensorProto(name=values.name, data_type=values.data_type, dims=shape, raw_data=raw)
    made.metadata_props.add(key=SPARSE, value="1")
    return made


def without_zeros(tensor: ir.TensorProtocol) -> onnx.SparseTensorProto | None:
    """The same without its zeros; None where that takes no less."""
    array = tensor.numpy()
    places = np.flatnonzero(array)
    if not len(places) or (array.itemsize + _INDEX_BYTES) * len(places) >= array.nbytes:
        return None
    values = ir.to_proto(ir.tensor(array.reshape(-1)[places], dtype=tensor.dtype, name=tensor.name))
    indices = ir.to_proto(ir.tensor(places.astype(np.int64)))
    return onnx.SparseTensorProto(values=values, indices=indices, dims=array.shape)


def _linear(indices: onnx.TensorProto, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Positions in the flattened tensor. ``indices`` [count] are these already, or [count, rank] coordinates."""
    if count == 0:
        return np.empty(0, np.int64)
    if indices.data_type != onnx.TensorProto.INT64 or tuple(indices.dims) not in {(count,), (count, len(shape))}:
        raise ModelError(f"it is sparse, and its indices {list(indices.dims)} do not fit {count} values of rank {len(shape)}")
    places = ir.serde.TensorProtoTensor(indices).numpy()
    limits: np.ndarray | int = math.prod(shape)
    if places.ndim == 2:
        limits = np.array(shape)
    if places.min() < 0 or (places >= limits).any():
        raise ModelError("it is sparse, and an index lies outside its shape")
    if places.ndim == 2:
        places = np.ravel_multi_index(tuple(places.T), shape)
    if len(np.unique(places)) != count:
        raise ModelError("it is sparse, and an index occurs twice")
    return places


def _check_external(tensor: onnx.TensorProto, dtype: ir.DataType, count: int, files: DataFiles) -> None:
    if dtype == ir.DataType.STRING:
        raise ModelError("it holds strings in external data, which ONNX does not allow")
    if tensor.HasField("raw_data") or any(len(getattr(tensor, name)) for name in _FIELDS):
        raise ModelError("it holds its data twice, in the model and as external data")
    place = {entry.key: entry.value for entry in tensor.external_data[:]}
    location = place.get("location", "")
    if not isinstance(location, str):
        raise ModelError("the location of its external data is not UTF-8 text")
    numbers = []
    for key in ("offset", "length"):
        text = place.get(key, "0")
        if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 20):
            raise ModelError(f"the {key} of its external data is {text!r}, not a whole number")
        numbers.append(int(text))
    offset, length = numbers
    needed = _bytes(dtype, count)
    if "length" in place and length != needed:
        holds = "it holds" if location == files.model_name else "its external data have"
        raise ModelError(f"{holds} {length} bytes, but its shape {list(tensor.dims)} and type {dtype.name} need {needed}")
    try:
        file = files[location]
    except ModelError as error:
        raise ModelError(f"its external data {location!r} cannot be used: {error.what}") from None
    if offset + needed > file.bytes:
        raise ModelError(
            f"its external data need {needed} bytes from {offset} on, but {location!r} is too short: it has {file.bytes} bytes"
        )


def _bytes(dtype: ir.DataType, count: int) -> int:
    return (count * dtype.bitwidth + 7) // 8


def _entries(dtype: ir.DataType, count: int) -> int:
    """How many entries of the typed field ``count`` elements take: types of 4 and 2 bits lie packed, a byte an entry."""
    if dtype in _COMPLEX:
        return 2 * count
    if dtype != ir.DataType.STRING and dtype.bitwidth in {2, 4}:
        return _bytes(dtype, count)
    return count
