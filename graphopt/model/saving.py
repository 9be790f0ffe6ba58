"""Writing a model so that an existing one is replaced as a whole or not at all.

Both files are written beside their final place under names that nobody uses, and flushed to the disk. Then the data
file is put in place, then the model is renamed over the old one, then a data file that only the old one used is
removed: at any moment the model that is there finds its data. The data file's name carries a hash of its content, so
the new one does not touch the old one, and the same model makes the same bytes.

Weights are copied from file to file in pieces; those in memory are written one by one. No copy of all weights is ever
made.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import ModelError, UsageError
from graphopt.garbage import collected_later

from . import tensors, wire
from .external import FileTensor
from .held import stored
from .reading import locations, read, root_cause
from .tensors import SPARSE
from .weights import Owner, Place, is_large, places, total_bytes
from .writing import Elsewhere, message

ExternalData = Literal["auto", "always", "never"]
"""Whether weights go to a file of their own; ``auto``: from ``EMBED_LIMIT_BYTES`` on."""
EMBED_LIMIT_BYTES = 1_500_000_000
"""With ``auto`` weights of this size or more go to a file of their own."""
_PAGE_BYTES = 4096
_PAGED_BYTES = 1 << 20  # tensors from here on begin at a page, so that a runtime can map them
_ALIGN_BYTES = 64
_STRIPE = 64
_SAME_SHAPE = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""What these give has the shape of what they read first, and the type that their parameters have."""


@dataclass(frozen=True)
class Saved:
    """What was written: ``bytes`` of both files together."""

    path: Path
    data_path: Path | None
    bytes: int


@collected_later()
def save(
    model: ir.Model,
    path: str | Path,
    external_data: ExternalData = "auto",
    data_name: str | None = None,
    *,
    durable: bool = True,
) -> Saved:
    """Write ``model`` to ``path``; what is there is replaced as a whole. The model stays as it is.

    Args:
        model: The model. Its weights may lie in the very files that are replaced.
        path: The .onnx file; its folder must exist.
        external_data: Whether the weights go to a file of their own; ``auto``: from 1.5 GB on.
        data_name: Name of that file, in the folder of ``path``. By default ``STEM.HASH.data``; with a name of your own, a
            crash between the two renames can leave an old model with new data.
        durable: Whether to wait until the disk has it; not needed for a file that is only tried.

    Raises:
        UsageError: The place cannot be written to, or the weights do not fit where they shall go. Nothing is changed then.
        ModelError: The model cannot be written as ONNX.
    """
    path = Path(path)
    _check_place(path, data_name)
    held = [*places(model)]
    size = total_bytes(place.tensor for place in held)
    external = external_data == "always" or (external_data == "auto" and size >= EMBED_LIMIT_BYTES)
    large = [place for place in held if is_large(place.tensor) and (external or SPARSE not in place.tensor.metadata_props)]
    try:
        if external and large:
            return _save_external(model, held, large, path, data_name, durable)
        return _save_embedded(model, held, large, path, durable)
    except OSError as error:
        raise UsageError(
            f"the model could not be written: {error.strerror or error}",
            where=str(path),
            hint="Nothing was changed. Check the folder's permissions and the free space.",
        ) from error


def move(source: Path, path: Path) -> None:
    """Put a model that ``save`` wrote elsewhere on the same disk in place at ``path``, with its data file.

    What is there is replaced as a whole. Both must have the same file name, since the data file is named after it.

    Raises:
        UsageError: The place cannot be written to. Nothing is changed then.
    """
    assert source.name == path.name
    _check_place(path, None)
    data = next(iter(_own_data(source)), None)
    try:
        _put_in_place(path, source, path.with_name(data.name) if data else None, data)
    except OSError as error:
        raise UsageError(f"the model could not be put in place: {error.strerror or error}", where=str(path)) from error


def _save_embedded(model: ir.Model, held: list[Place], large: list[Place], path: Path, durable: bool) -> Saved:
    marks = {place.owner: (wire.MARK, number) for number, place in enumerate(large)}
    pieces = wire.join(_serialize(model, marks.get), [place.tensor for place in large])
    _check_size(wire.size(pieces), path)
    with _temporary(path) as (file, temporary):
        sink = _Sink(file)
        for piece in pieces:
            if isinstance(piece, bytes | memoryview):
                sink.write(piece)
            else:
                sink.write_tensor(piece)
        sink.flush(durable)
        _keep_readable(held, path)
        _replace(path, temporary, durable=durable)
    return Saved(path, None, sink.bytes)


def _save_external(
    model: ir.Model, held: list[Place], large: list[Place], path: Path, data_name: str | None, durable: bool
) -> Saved:
    with _temporary(path) as (data_file, temporary_data), _temporary(path) as (file, temporary):
        sha = hashlib.sha256()
        data, sink = _Sink(data_file, sha.update), _Sink(file)
        offsets = _write_data(large, data)
        data_path = path.with_name(data_name or f"{path.stem}.{sha.hexdigest()[:8]}.data")
        skeleton = _serialize(model, {owner: (data_path.name, offset) for owner, offset in offsets.items()}.get)
        _check_size(len(skeleton), path)
        sink.write(skeleton)
        data.flush(durable)
        sink.flush(durable)
        _keep_readable(held, path, data_path)
        _replace(path, temporary, data_path, temporary_data, durable=durable)
    return Saved(path, data_path, sink.bytes + data.bytes)


def _write_data(large: list[Place], data: _Sink) -> dict[Owner, int]:
    """Write the tensors and return their offsets; one that several places share is written once."""
    offsets: dict[Owner, int] = {}
    known: dict[tuple[int, int, int], int] = {}
    for place in large:
        tensor = place.tensor
        key = (id(tensor.file), tensor.offset, tensor.nbytes) if isinstance(tensor, FileTensor) else (id(tensor), 0, 0)
        if key not in known:
            data.write(bytes(-data.bytes % (_PAGE_BYTES if tensor.nbytes >= _PAGED_BYTES else _ALIGN_BYTES)))
            known[key] = data.bytes
            data.write_tensor(tensor)
        offsets[place.owner] = known[key]
    return offsets


def _serialize(model: ir.Model, elsewhere: Elsewhere) -> bytes:
    proto = message(model, elsewhere)
    _drop_repeated_types(proto.graph)
    _drop_zeros(proto.graph)
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except wire.EncodeError as error:
        raise ModelError(f"the model cannot be written as ONNX: {root_cause(error)}") from error


def _drop_repeated_types(graph: onnx.GraphProto) -> None:
    """Leave out types of what a QuantizeLinear or DequantizeLinear gives, if its shape is that of what the node reads.

    There are as many of these as of everything else in a quantized model.
    """
    same = [node for node in graph.node if node.op_type in _SAME_SHAPE and not node.domain]
    if not same:
        return
    shapes = {info.name: info.type.tensor_type.shape.SerializeToString() for info in (*graph.input, *graph.value_info)}
    for tensor in graph.initializer:
        dims = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in tensor.dims]
        shapes[tensor.name] = onnx.TensorShapeProto(dim=dims).SerializeToString()
    repeated = {node.output[0] for node in same if shapes.get(node.input[0]) == shapes.get(node.output[0])}
    kept = [info for info in graph.value_info if info.name not in repeated or info.doc_string or info.metadata_props]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _drop_zeros(graph: onnx.GraphProto) -> None:
    """Store initializers that are marked so without their zeros, where that takes less."""
    given = [tensor for tensor in graph.initializer if tensor.metadata_props]
    if not any(entry.key == SPARSE for tensor in given for entry in tensor.metadata_props):
        return
    inputs = {info.name for info in graph.input}
    kept = []
    for tensor in graph.initializer:
        marked = any(entry.key == SPARSE for entry in tensor.metadata_props) and tensor.name not in inputs
        whole = tensor.data_location != onnx.TensorProto.EXTERNAL
        found = tensors.without_zeros(ir.from_proto(tensor)) if marked and whole else None
        if found is None:
            kept.append(tensor)
        else:
            graph.sparse_initializer.append(found)
    if graph.sparse_initializer:
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _check_place(path: Path, data_name: str | None) -> None:
    if data_name is not None and (Path(data_name).name != data_name or data_name in {"", path.name}):
        raise UsageError(f"{data_name!r} is not a name for the data file: it must be a plain name, and not the model's")
    if not path.parent.is_dir():
        raise UsageError("the folder does not exist", where=str(path.parent), hint="Create it, or choose another output.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError("the folder is not writable", where=str(path.parent), hint="Choose another output.")
    if path.exists() and not path.is_file():
        raise UsageError("the output exists and is not a file", where=str(path), hint="Choose another output.")


def _check_size(size: int, path: Path) -> None:
    if size > wire.LIMIT_BYTES:
        raise UsageError(
            f"the .onnx file would take {size / 1e9:.1f} GB, but the format allows 2 GB",
            where=str(path),
            hint="Let the weights go to a file of their own: external data 'auto' or 'always'.",
        )


def _keep_readable(held: list[Place], path: Path, data_path: Path | None = None) -> None:
    """Keep weights readable that lie in a file that goes."""
    doomed = [old for old in {path, data_path, *_own_data(path)} if old is not None and old.exists()]
    if not doomed:
        return
    for file in {place.tensor.file for place in held if isinstance(place.tensor, FileTensor)}:
        if any(file.path.exists() and file.path.samefile(old) for old in doomed):
            file.pin()


def _replace(path: Path, new: Path, data_path: Path | None = None, new_data: Path | None = None, *, durable: bool) -> None:
    """Put the finished files in place, as readable as what they replace."""
    if path.exists():
        for written in (new, new_data):
            if written is not None:
                written.chmod(stat.S_IMODE(path.stat().st_mode))
    _put_in_place(path, new, data_path, new_data, durable=durable)


def _put_in_place(path: Path, new: Path, data_path: Path | None, new_data: Path | None, *, durable: bool = True) -> None:
    """Rename the data file, then the model, then remove the data file that only the replaced model used."""
    stale = _own_data(path) - {data_path}
    if data_path is not None and new_data is not None:
        replaces = data_path.exists()
        os.replace(new_data, data_path)
        try:
            os.replace(new, path)
        except OSError:
            if not replaces:
                os.replace(data_path, new_data)
            raise
    else:
        os.replace(new, path)
    if durable:
        _sync_folder(path.parent)
    for old in stale:
        with suppress(OSError):  # the model is in place; a file too many harms nobody
            old.unlink()


def _own_data(path: Path) -> set[Path]:
    """Data files of the model at ``path`` that bear the name that ``save`` gives them."""
    if not path.exists():
        return set()
    own = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{8}\.data")
    if not any(map(own.fullmatch, os.listdir(path.parent))):
        return set()
    try:
        names = locations(read(path)[0])
    except ModelError:
        return set()
    return {path.with_name(name) for name in names if own.fullmatch(name)}


@contextmanager
def _temporary(beside: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file in the same folder; unless it was renamed it is gone afterwards."""
    path = beside.with_name(f".{beside.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        with path.open("xb") as file:
            yield file, path
    finally:
        with suppress(OSError):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` last; where a folder cannot be opened (Windows) there is no way to."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _in_memory(tensor: ir.TensorProtocol) -> memoryview | None:
    """A tensor's raw data, no copy where they lie in order; None where they are not in memory, or not as they are stored."""
    if isinstance(tensor, FileTensor) or not isinstance(tensor, ir.Tensor | ir.LazyTensor) or tensor.dtype.bitwidth < 8:
        return None
    array = tensor.numpy()
    return _in_order(array).reshape(-1).view(np.uint8).data if array.dtype == stored(tensor.dtype) else None


def _in_order(array: np.ndarray) -> np.ndarray:
    """The same with its elements one after another; what was transposed in stripes that the cache holds: twice as fast."""
    if array.flags.c_contiguous:
        return array
    made = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[-1], _STRIPE):
        made[..., start : start + _STRIPE] = array[..., start : start + _STRIPE]
    return made


class _Sink:
    """Writes to a file and counts; ``see`` is shown all that is written.

    Having no descriptor, it is handed the tensors' bytes piece by piece.
    """

    def __init__(self, file: BinaryIO, see: Callable[[bytes | memoryview], None] | None = None) -> None:
        self._file = file
        self._see = see
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        if self._see is not None:
            self._see(data)
        self.bytes += len(data)

    def write_tensor(self, tensor: ir.TensorProtocol) -> None:
        """Write a tensor's raw data.

        Raises:
            ModelError: They are not as many bytes as its type and shape say.
        """
        before = self.bytes
        data = _in_memory(tensor)
        if data is not None:
            self.write(data)
        elif hasattr(tensor, "tofile"):
            tensor.tofile(self)
        else:
            self.write(tensor.tobytes())
        if self.bytes - before != tensor.nbytes:
            raise ModelError(
                f"the tensor {tensor.name!r} holds {self.bytes - before} bytes, but its type and shape need {tensor.nbytes}"
            )

    def flush(self, durable: bool) -> None:
        """Hand everything to the system; wait until the disk has it if it shall be durable."""
        self._file.flush()
        if durable:
            os.fsync(self._file.fileno())
