"""Reading a model's file: the ModelProto, and apart from it the weights, which are never copied."""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from graphopt.errors import ModelError

from . import wire
from .weights import SMALL_BYTES

IN_PLACE_BYTES = 64 << 20
"""Weights of larger files are read from the file when they are needed. Smaller files may change once they were loaded."""

_HELD = [[*message.fields] for message in onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.values()]
"""Protobuf makes a field's description anew for each access to a repeated field, unless somebody holds it. A loop over such a
field ends in an exception inside, as costly as ten entries: where fields are many their entries are taken at once, ``[:]``."""

# What people hand in instead of a model, by how it begins.
_OTHER_FORMATS = (
    (0, b"version https://git-lfs", "a Git LFS pointer to the model", "Fetch the model with 'git lfs pull'."),
    (4, b"ORTM", "a model in onnxruntime's own .ort format", "Use the ONNX model that it was made from."),
    (4, b"TFL3", "a TensorFlow Lite model", "Convert it first: python -m tf2onnx.convert --tflite FILE --output model.onnx."),
    (0, b"\x89HDF", "an HDF5 file, as Keras saves its models", "Export the model to ONNX first, with tf2onnx."),
    (0, b"PK\x03\x04", "a ZIP archive, as PyTorch saves its checkpoints", "Export the model to ONNX first."),
    (0, b"<", "a text in HTML or XML", "If it was downloaded, look at it: it may be an error page."),
)


def read(path: Path) -> tuple[onnx.ModelProto, memoryview | None]:
    """Parse a model file.

    Returns:
        The model, in which embedded weights have become external data in that very file; and the file's contents, or
        None for a large file.

    Raises:
        ModelError: There is no such file, it cannot be read, or it is not an ONNX model. The message does not name it.
    """
    contents = _contents(path)
    data = contents if isinstance(contents, memoryview) else memoryview(contents)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(wire.split(data, path.name, SMALL_BYTES))
    except (wire.DecodeError, wire.WireError) as error:
        raise _not_a_model(data, str(error)) from None
    return proto, contents if isinstance(contents, memoryview) else None


def locations(proto: onnx.ModelProto) -> set[str]:
    """Where the external data of a model are, relative to its folder."""
    return {
        entry.value
        for tensor in _tensors(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def root_cause(error: BaseException) -> str:
    """The message of the error behind an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


def _contents(path: Path) -> memoryview | mmap.mmap:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError("this is a folder, not a model file", hint="Name the .onnx file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError("this is not a regular file")
        if status.st_size == 0:
            raise ModelError("the file is empty")
        if status.st_size > wire.LIMIT_BYTES:
            raise ModelError(
                "the file is larger than 2 GB, which the format does not allow",
                hint="Export the model with its weights as external data.",
            )
        with path.open("rb") as file:
            if status.st_size <= IN_PLACE_BYTES:
                array = np.fromfile(file, np.uint8)  # NumPy asks for large pages: half the time of bytes
                array.flags.writeable = False
                return array.data
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError("there is no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"the file cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _not_a_model(data: memoryview, reason: str) -> ModelError:
    for offset, signature, what, hint in _OTHER_FORMATS:
        if data[offset : offset + len(signature)] == signature:
            return ModelError(f"this is not an ONNX model but {what}", hint=hint)
    if "MaxDepth" in reason or "nested" in reason:
        return ModelError("the model's subgraphs are nested too deeply: the format allows about 30 levels")
    if wire.is_truncated(data):
        return ModelError("the file is truncated: it ends in the middle of the model", hint="Copy or download it again.")
    return ModelError("this is not an ONNX model, or it is damaged")


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while waiting:
        owner = waiting.pop()
        if isinstance(owner, onnx.GraphProto):
            yield from owner.initializer
        for node in owner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)
