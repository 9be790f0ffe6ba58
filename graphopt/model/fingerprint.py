"""A key of what a model computes: SHA-256 over its graph and its weights, of the model in memory, whatever file it came from.

The graph is serialized without its large weights (milliseconds); each large weight is hashed once, and the digest stays with
the tensor, which clones share: the fingerprint of a model after another pass costs only what the pass changed. Tensors are
taken to be immutable, as they are everywhere else: a pass that changes a weight puts a new tensor in its place.
"""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from .external import FileTensor
from .weights import is_large, places
from .writing import message

_DIGEST = "graphopt.sha256"
"""Key of ``tensor.meta`` under which a tensor's digest stays."""


class _Hash:
    """A place to write to that keeps the SHA-256 only."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.sha.update(data)


def fingerprint(model: ir.Model) -> str:
    """SHA-256, hexadecimal. Equal for clones; another one after any change to the graph, its names or its weights."""
    large = {place.owner: place.tensor for place in places(model) if is_large(place.tensor)}
    found = hashlib.sha256()
    for tensor in large.values():
        found.update(_digest(tensor))
    found.update(message(model, dict.fromkeys(large, ("", 0)).get).SerializeToString(deterministic=True))
    return found.hexdigest()


def _digest(tensor: ir.TensorProtocol) -> bytes:
    meta = getattr(tensor, "meta", {})  # a tensor of somebody else's class may have none
    if _DIGEST not in meta:
        sink = _Hash()
        if isinstance(tensor, FileTensor):
            tensor.tofile(sink)
        else:
            sink.write(tensor.tobytes())
        meta[_DIGEST] = sink.sha.digest()
    found: bytes = meta[_DIGEST]
    return found
