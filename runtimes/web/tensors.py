"""Tensors as bytes, in the form that ``site/tensors.mjs`` reads and writes in the page.

length of the header   4 bytes, little-endian
header                 JSON: name, type (as onnxruntime-web calls it), dims and bytes of each tensor; strings are in it
data                   of each tensor in turn, little-endian; the header and each one are padded to a multiple of 8
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from graphopt.contracts import Array
from graphopt.errors import ModelError

STRING = "string"
NUMERIC = ("float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")
"""Types of onnxruntime-web that numpy has too, each under the same name."""
_ALIGNMENT = 8


def dtype(kind: str) -> np.dtype:
    """Numpy's dtype for a type of onnxruntime-web; strings, and what is no array in JavaScript, are objects."""
    return np.dtype(kind) if kind in NUMERIC else np.dtype(object)


def encode(values: Mapping[str, Array]) -> bytes:
    """Pack named arrays.

    Raises:
        ModelError: A type has no array in JavaScript (bfloat16, float8, complex).
    """
    header, parts = [], []
    for name, value in values.items():
        array = np.asarray(value)
        entry: dict[str, object] = {"name": name, "dims": list(array.shape)}
        if array.dtype.kind in "OUS":
            texts = [text.decode() if isinstance(text, bytes) else str(text) for text in array.reshape(-1).tolist()]
            header.append({**entry, "type": STRING, "strings": texts})
            continue
        if array.dtype.name not in NUMERIC:
            raise ModelError(f"a browser has no arrays of {array.dtype.name}", where=f"value {name!r}")
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        header.append({**entry, "type": array.dtype.name, "bytes": len(data)})
        parts.append(data + bytes(-len(data) % _ALIGNMENT))
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, bytes(-(4 + len(text)) % _ALIGNMENT), *parts])


def decode(data: bytes) -> dict[str, Array]:
    """Unpack what ``encode``, or the page, packed; the arrays can be written to."""
    length = int.from_bytes(data[:4], "little")
    position = 4 + length + -(4 + length) % _ALIGNMENT
    values: dict[str, Array] = {}
    for entry in json.loads(data[4 : 4 + length]):
        if entry["type"] == STRING:
            values[entry["name"]] = np.array(entry["strings"], dtype=object).reshape(entry["dims"])
            continue
        size = entry["bytes"]
        kind = np.dtype(entry["type"]).newbyteorder("<")
        array = np.frombuffer(data[position : position + size], kind).reshape(entry["dims"])
        values[entry["name"]] = array.astype(entry["type"])
        position += size + -size % _ALIGNMENT
    return values
