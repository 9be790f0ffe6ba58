"""ONNX files by protobuf's wire format, just far enough to leave the weights where they are.

A message is a list of fields: a key, for a nested message a length, and its bytes. ``split`` reads a model without its
weights: it copies every byte except the raw data of large tensors, and puts a reference to their place in the file
there, in the form of ONNX's own external data. ``join`` is the way back: it yields the bytes of a model file in order,
with the tensor itself where its data belong. Neither holds the weights, so a model with embedded weights costs no more
memory than one with external ones.

Format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError, Message  # type: ignore[import-untyped]  # protobuf ships no types

__all__ = [
    "LIMIT_BYTES",
    "MARK",
    "DecodeError",
    "EncodeError",
    "WireError",
    "is_truncated",
    "join",
    "size",
    "split",
]

LIMIT_BYTES = 2**31 - 1
"""The largest message that protobuf reads or writes."""
MARK = "graphopt:embedded"
"""The location of data that ``join`` puts in their place; the offset is the tensor's number."""
_LIMIT_DEPTH = 100
_BYTES = 2  # the wire type of strings, bytes and nested messages

Piece: TypeAlias = bytes | memoryview | ir.TensorProtocol
"""A stretch of a model file: its bytes, or a tensor whose raw data are the bytes."""


class WireError(ValueError):
    """The bytes are not a protobuf message; the text says what is wrong with them."""


def _number(message: type[Message], name: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[name].number)


# Where tensors can be: message -> field -> the message in it.
_CHILDREN: dict[type[Message], dict[int, type[Message]]] = {
    onnx.ModelProto: {
        _number(onnx.ModelProto, "graph"): onnx.GraphProto,
        _number(onnx.ModelProto, "functions"): onnx.FunctionProto,
    },
    onnx.FunctionProto: {_number(onnx.FunctionProto, "node"): onnx.NodeProto},
    onnx.GraphProto: {
        _number(onnx.GraphProto, "initializer"): onnx.TensorProto,
        _number(onnx.GraphProto, "node"): onnx.NodeProto,
    },
    onnx.NodeProto: {_number(onnx.NodeProto, "attribute"): onnx.AttributeProto},
    onnx.AttributeProto: {
        _number(onnx.AttributeProto, "t"): onnx.TensorProto,
        _number(onnx.AttributeProto, "g"): onnx.GraphProto,
        _number(onnx.AttributeProto, "graphs"): onnx.GraphProto,
    },
}
_RAW_DATA = _number(onnx.TensorProto, "raw_data")
_NODE_BYTES = 1 << 14
"""Nodes of fewer bytes are not looked into: many hold a page of text, few a tensor."""


def split(data: memoryview, location: str, minimum: int) -> bytes:
    """A model file without the raw data of its tensors.

    Args:
        data: The file.
        location: The file's name, which the references give as the place of the data.
        minimum: Raw data of fewer bytes stay in the message, and those in nodes of fewer than 16 KB.

    Raises:
        WireError: The bytes are not a protobuf message.
    """

    def without_data(start: int, end: int) -> list[Piece] | None:
        for number, nested, begin, payload, after in _fields(data, start, end, minimum):
            if number == _RAW_DATA and nested:
                place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
                for key, value in (("location", location), ("offset", str(payload)), ("length", str(after - payload))):
                    place.external_data.add(key=key, value=value)
                return [data[start:begin], data[after:end], place.SerializeToString(deterministic=True)]
        return None

    rewrite = _Rewrite(data, without_data, minimum, _NODE_BYTES)
    pieces = rewrite.message(onnx.ModelProto, 0, len(data))
    return bytes(data) if pieces is None else b"".join(piece for piece in pieces if isinstance(piece, bytes | memoryview))


def join(skeleton: bytes, tensors: Sequence[ir.TensorProtocol]) -> list[Piece]:
    """The pieces of a model file, in order: bytes, and tensors whose raw data belong there.

    Args:
        skeleton: A serialized model in which tensors have their data at ``MARK``.
        tensors: These tensors.
    """
    marks = _positions(skeleton, MARK.encode())
    data = memoryview(skeleton)

    def with_data(start: int, end: int) -> list[Piece] | None:
        proto = onnx.TensorProto.FromString(data[start:end].tobytes())
        place = {entry.key: entry.value for entry in proto.external_data[:]}
        if place.get("location") != MARK:
            return None
        tensor = tensors[int(place["offset"])]
        proto.ClearField("external_data")
        proto.ClearField("data_location")
        head = proto.SerializeToString(deterministic=True)
        return [head + _header(_RAW_DATA, tensor.nbytes), tensor]

    def marked(start: int, end: int) -> bool:
        following = bisect_left(marks, start)
        return following < len(marks) and marks[following] < end

    pieces = _Rewrite(data, with_data, worth=marked).message(onnx.ModelProto, 0, len(data))
    return [skeleton] if pieces is None else pieces


def size(pieces: Sequence[Piece]) -> int:
    """How many bytes the pieces make."""
    return sum(len(piece) if isinstance(piece, bytes | memoryview) else piece.nbytes for piece in pieces)


def is_truncated(data: memoryview) -> bool:
    """Whether a file that cannot be read begins like a model and ends too early."""
    known = {field.number for field in onnx.ModelProto.DESCRIPTOR.fields}
    seen = 0
    try:
        for number, *_ in _fields(data, 0, len(data)):
            if number not in known:
                return False
            seen += 1
    except _TooShortError:
        return seen > 0
    except WireError:
        return False
    return False


class _TooShortError(WireError):
    """A field goes on after the end of its message."""


@dataclass(frozen=True)
class _Rewrite:
    """Replaces the tensors in a message: ``leaf`` makes the pieces of one, or None to leave it.

    Messages of fewer than ``least`` bytes and nodes of fewer than ``least_node`` are passed by, as what is not ``worth`` it.
    """

    data: memoryview
    leaf: Callable[[int, int], list[Piece] | None]
    least: int = 0
    least_node: int = 0
    worth: Callable[[int, int], bool] = lambda _start, _end: True

    def message(self, kind: type[Message], start: int, end: int, depth: int = 0) -> list[Piece] | None:
        """The message anew, with the lengths of those around a replaced tensor mended; None when nothing was replaced."""
        if kind is onnx.TensorProto:
            return self.leaf(start, end)
        if depth > _LIMIT_DEPTH:
            raise WireError(f"messages are nested more than {_LIMIT_DEPTH} deep")
        pieces: list[Piece] = []
        copied = start
        children = _CHILDREN[kind]
        for number, nested, begin, payload, after in _fields(self.data, start, end, self.least):
            child = children.get(number) if nested else None
            if child is None or (child is onnx.NodeProto and after - payload < self.least_node):
                continue
            if self.worth(payload, after) and (inner := self.message(child, payload, after, depth + 1)) is not None:
                pieces += [self.data[copied:begin], _header(number, size(inner)), *inner]
                copied = after
        return [*pieces, self.data[copied:end]] if pieces else None


def _fields(data: memoryview, start: int, end: int, least: int = 0) -> Iterator[tuple[int, bool, int, int, int]]:
    """The fields of a message, without strings and nested messages of fewer than ``least`` bytes.

    Of each its number, whether it is a string or a message, where it begins, where its content begins, and where it ends.
    """
    position = start
    while position < end:
        begin = position
        key = data[position]
        position += 1
        if key >= 0x80:
            key, position = _varint(data, begin, end)
        wire_type = key & 7
        payload = position
        if wire_type == _BYTES:
            length = data[position] if position < end else 0x80
            if length < 0x80:  # as most are
                payload += 1
            else:
                length, payload = _varint(data, position, end)
            position = payload + length
            if length < least and position <= end:
                continue
        elif wire_type == 0:
            _, position = _varint(data, position, end)
        elif wire_type == 1:
            position += 8
        elif wire_type == 5:
            position += 4
        else:
            raise WireError("a field is of a kind that does not exist")
        if position > end:
            raise _TooShortError("it ends in the middle of a field")
        yield key >> 3, wire_type == _BYTES, begin, payload, position


def _varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """The integer at ``position`` and the position after it."""
    value = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise WireError("an integer has more than 64 bits")
    raise _TooShortError("it ends in the middle of a field")


def _header(number: int, length: int) -> bytes:
    """The key and the length that precede a nested message."""
    encoded = bytearray()
    for value in (number << 3 | _BYTES, length):
        rest = value
        while rest >= 0x80:
            encoded.append(rest & 0x7F | 0x80)
            rest >>= 7
        encoded.append(rest)
    return bytes(encoded)


def _positions(data: bytes, mark: bytes) -> list[int]:
    found = []
    position = data.find(mark)
    while position >= 0:
        found.append(position)
        position = data.find(mark, position + len(mark))
    return found
