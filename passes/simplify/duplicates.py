"""Keep one copy of initializers that hold the same bytes.

    w1 = w2 (type, shape, every byte)   ->   every use of w2 becomes a use of w1

Only initializers of equal type and shape are compared: small ones by their bytes, others first by their first bytes, then by a
digest that reads them in pieces: weights in an external file are never kept. The copy that stays must be visible where the
other one was used: in the same graph, or in one around it. An initializer that is also an input (a caller may override it) or
an output stays as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.model.weights import SMALL_BYTES

from .graph import Work
from .moved import MovedTensor

_PREFIX_BYTES = 64


def merge_equal_initializers(work: Work) -> list[Change]:
    """Merge equal initializers, in the main graph and in all subgraphs."""
    root, before, new = work.roots[0], work.compared, []
    work.compared = {}
    for graph in root.graphs:
        for value in graph.initializers.data.values():
            known = before.get(value)
            if known is None or known[0] is not graph:
                new.append(value)
                known = graph, _kind(value)
            work.compared[value] = known
    if not new:
        return []
    parents = {inner: node.graph for node, found in root.subgraphs.items() for inner in found}
    kept = work.annotated_names()
    changes = []
    for group in _groups(work.compared, new):
        candidates = [v for v in group if v.name not in kept and not (work.excludes and work.excluded(v.name or ""))]
        for equal in _partition(candidates):
            changes += _merge(equal, parents)
    return changes


def _kind(value: ir.Value) -> Hashable | None:
    """Type, shape and, if it is small, contents of an initializer; None if it is not to be merged with any other."""
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.is_graph_output():
        return None
    if tensor.dtype == ir.DataType.STRING or type(tensor) is MovedTensor:
        return None  # computed when it is written, not before
    return tensor.dtype, tensor.shape.dims, tensor.tobytes() if tensor.nbytes < SMALL_BYTES else None


def _groups(compared: Mapping[ir.Value, tuple[ir.Graph, Hashable]], new: Sequence[ir.Value]) -> list[list[ir.Value]]:
    """Sets of what may be merged with something new, outer graphs first."""
    groups: dict[Hashable, list[ir.Value]] = {kind: [] for value in new if (kind := compared[value][1]) is not None}
    for value, (_, kind) in compared.items():
        if kind in groups:
            groups[kind].append(value)
    return [group for group in groups.values() if len(group) > 1]


def _partition(values: list[ir.Value]) -> Iterator[list[ir.Value]]:
    """Split values of one kind into sets of equal contents, those of a single value left out."""
    tensor = values[0].const_value if values else None
    if tensor is None or tensor.nbytes < SMALL_BYTES:
        yield values
    else:
        for same_start in _split(values, _start):
            yield from _split(same_start, _digest)


def _split(values: list[ir.Value], contents: Callable[[ir.TensorProtocol], bytes]) -> Iterator[list[ir.Value]]:
    if len(values) < 2:
        return
    sets: dict[bytes, list[ir.Value]] = {}
    for value in values:
        assert value.const_value is not None
        sets.setdefault(contents(value.const_value), []).append(value)
    yield from (equal for equal in sets.values() if len(equal) > 1)


class _Digest:
    """A digest as something that tensors can be written to."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=32)

    def write(self, data: bytes | memoryview) -> None:
        self.hash.update(data)


def _digest(tensor: ir.TensorProtocol) -> bytes:
    digest = _Digest()
    if hasattr(tensor, "tofile"):
        tensor.tofile(digest)  # piece by piece where it lies in a file: mapped pages would count as memory of the process
    else:
        digest.write(tensor.tobytes())
    return digest.hash.digest()


def _start(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype.bitwidth < 8:  # several elements in a byte
        return tensor.tobytes()[:_PREFIX_BYTES]
    array = tensor.numpy()  # a mapping of the file: no more than the first page is read
    return array.flat[: -(-_PREFIX_BYTES // array.itemsize)].tobytes()[:_PREFIX_BYTES]


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
