"""Keep one copy of initializers that hold the same bytes.

    w1 = w2 (type, shape, every byte)   ->   every use of w2 becomes a use of w1

Only initializers of equal type and shape are compared, first by their first bytes, then by all of them. Large ones go through
a digest in pieces: weights in an external file are never kept. The copy that stays must be visible where the other one was
used: in the same graph, or in one around it. An initializer that is also an input (a caller may override it) or an output
stays as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.model.weights import tensor_bytes

from .graph import Work
from .moved import MovedTensor

_PREFIX_BYTES = 64
_SMALL_BYTES = 4096


def merge_equal_initializers(work: Work) -> list[Change]:
    """Merge equal initializers, in the main graph and in all subgraphs."""
    root, before, new = work.roots[0], work.compared, []
    work.compared = {}
    for graph in root.graphs:
        for value in graph.initializers.values():
            known = before.get(value)
            if known is None or known[0] is not graph:
                new.append(value)
                known = graph, _kind(value)
            work.compared[value] = known
    if not new:
        return []
    parents = {inner: home for node, home in root.homes.items() for inner in root.subgraphs.get(node, ())}
    kept = work.annotated_names()
    changes = []
    for group in _groups(work.compared, new):
        candidates = [value for value in group if value.name not in kept and not work.excluded(value.name or "")]
        for equal in _partition(candidates):
            changes += _merge(equal, parents)
    return changes


def _kind(value: ir.Value) -> Hashable | None:
    """Type and shape of an initializer; None if it is not to be merged with any other."""
    tensor = value.const_value
    if tensor is None or tensor.dtype == ir.DataType.STRING or type(tensor) is MovedTensor:
        return None  # computed when it is written, not before
    return None if value.is_graph_input() or value.is_graph_output() else (tensor.dtype, tensor.shape.dims)


def _groups(compared: Mapping[ir.Value, tuple[ir.Graph, Hashable]], new: Sequence[ir.Value]) -> list[list[ir.Value]]:
    """Sets of what may be merged with something new: of one type and shape, outer graphs first."""
    groups: dict[Hashable, list[ir.Value]] = {kind: [] for value in new if (kind := compared[value][1]) is not None}
    for value, (_, kind) in compared.items():
        if kind in groups:
            groups[kind].append(value)
    return [group for group in groups.values() if len(group) > 1]


def _partition(values: list[ir.Value]) -> Iterator[list[ir.Value]]:
    """Split values of one type and shape into sets of equal contents, those of a single value left out."""
    for same_start in _split(values, _PREFIX_BYTES):
        tensor = same_start[0].const_value
        assert tensor is not None
        size = tensor_bytes(tensor)
        if size <= _PREFIX_BYTES:
            yield same_start
        else:
            yield from _split(same_start, size if size <= _SMALL_BYTES else None)


def _split(values: list[ir.Value], limit: int | None) -> Iterator[list[ir.Value]]:
    if len(values) < 2:
        return
    sets: dict[bytes, list[ir.Value]] = {}
    for value in values:
        assert value.const_value is not None
        sets.setdefault(_digest(value.const_value, limit), []).append(value)
    yield from (equal for equal in sets.values() if len(equal) > 1)


class _Digest:
    """A digest as something that tensors can be written to."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=32)

    def write(self, data: bytes | memoryview) -> None:
        self.hash.update(data)


def _digest(tensor: ir.TensorProtocol, limit: int | None) -> bytes:
    """The first ``limit`` bytes of a tensor, or a digest of all."""
    if limit is None:
        digest = _Digest()
        if hasattr(tensor, "tofile"):
            tensor.tofile(digest)  # piece by piece where it lies in a file: mapped pages would count as memory of the process
        else:
            digest.write(tensor.tobytes())
        return digest.hash.digest()
    if tensor.nbytes <= limit or tensor.dtype.bitwidth < 8:  # all, or several elements in a byte
        return tensor.tobytes()[:limit]
    array = tensor.numpy()  # a mapping of the file: no more than the first page is read
    return array.flat[: -(-limit // array.itemsize)].tobytes()[:limit]


def _merge(equal: list[ir.Value], parents: Mapping[ir.Graph, ir.Graph | None]) -> list[Change]:
    """Let each value be replaced by the first one that is visible from its graph."""
    changes = []
    kept: dict[ir.Graph, ir.Value] = {}
    for value in equal:
        graph = value.graph
        assert graph is not None
        outer: ir.Graph | None = graph
        while outer is not None and outer not in kept:
            outer = parents.get(outer)
        if outer is None:
            kept[graph] = value
            continue
        first = kept[outer]
        changes.append(Change(value.name or "", f"merged into {first.name}", "both initializers hold the same bytes"))
        value.replace_all_uses_with(first)
        del graph.initializers[value.name or ""]
    return changes
