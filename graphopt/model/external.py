"""Weights that stay in their files: where such a file may lie, and tensors that read their part of one when asked.

A ``DataFile`` remembers which file it was when the model was loaded. One that was changed or replaced since is refused
instead of read: its bytes are somebody else's. The exception is a file that graphopt itself is about to replace:
``pin`` keeps the old one.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError

from .held import stored

_CHUNK_BYTES = 4 << 20


class Sink(Protocol):
    """What weights are written to."""

    def write(self, data: bytes | memoryview, /) -> Any:
        """Take the next bytes."""


class DataFile:
    """A file that holds weights.

    Args:
        path: The file.
        contents: All of it, where it was read already.

    Raises:
        ModelError: It cannot be read, or is not a regular file.
    """

    def __init__(self, path: Path, contents: memoryview | None = None) -> None:
        self.path = path
        self._pinned: memoryview | mmap.mmap | None = contents
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise ModelError("the file does not exist") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"the file cannot be read: {getattr(error, 'strerror', None) or error}") from None
        if not stat.S_ISREG(status.st_mode):
            raise ModelError("it is not a regular file")
        self.bytes = status.st_size
        self._identity = _identity(status)

    def map(self, offset: int, length: int) -> np.ndarray:
        """``length`` bytes from ``offset`` as a read-only array of uint8; no memory is taken until it is read.

        Raises:
            ModelError: The file was changed since.
        """
        if length == 0:
            return np.empty(0, np.uint8)
        if self._pinned is not None:
            return np.frombuffer(self._pinned, np.uint8, length, offset)
        begin = offset - offset % mmap.ALLOCATIONGRANULARITY
        with self._open() as file:
            mapped = mmap.mmap(file.fileno(), length + offset - begin, access=mmap.ACCESS_READ, offset=begin)
        return np.frombuffer(mapped, np.uint8, length, offset - begin)

    def copy(self, offset: int, length: int, sink: Sink) -> None:
        """Write ``length`` bytes from ``offset`` to ``sink``, a few megabytes at a time.

        Not through a mapping: its pages would count as resident memory of the process.

        Raises:
            ModelError: The file was changed since.
        """
        if self._pinned is not None:
            sink.write(memoryview(self._pinned)[offset : offset + length])
            return
        with self._open() as file:
            file.seek(offset)
            while length:
                chunk = file.read(min(_CHUNK_BYTES, length))
                if not chunk:
                    raise self._changed()
                sink.write(chunk)
                length -= len(chunk)

    def pin(self) -> None:
        """Keep reading the file as it is now, even after another one has taken its name."""
        if self._pinned is None and self.bytes:
            with self._open() as file:
                self._pinned = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _open(self) -> io.FileIO:
        try:
            file = io.FileIO(self.path)
        except OSError:
            raise self._changed() from None
        if _identity(os.fstat(file.fileno())) != self._identity:
            file.close()
            raise self._changed()
        return file

    def _changed(self) -> ModelError:
        return ModelError(
            "the weights in this file were changed or removed since the model was loaded",
            where=str(self.path),
            hint="Load the model again, and leave its files alone while they are in use.",
        )


class FileTensor(ir.LazyTensor):
    """A tensor whose data are a span of a file; they are mapped when asked for, and let go with the array."""

    def __init__(self, file: DataFile, offset: int, dtype: ir.DataType, shape: ir.Shape, **described: Any) -> None:
        super().__init__(self._read, dtype, shape, **described)
        self.file = file
        self.offset = offset
        self._nbytes = super().nbytes

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self._nbytes

    def numpy(self) -> np.ndarray:
        """The elements, mapped until the array is let go."""
        if self.dtype.bitwidth < 8:
            return super().numpy()
        return self.file.map(self.offset, self.nbytes).view(stored(self.dtype)).reshape(self.shape.numpy())

    def tofile(self, file: Sink) -> None:
        """Copy the data from file to file."""
        self.file.copy(self.offset, self.nbytes, file)

    def _read(self) -> ir.TensorProtocol:
        if self.dtype.bitwidth < 8:
            return ir.PackedTensor(self.file.map(self.offset, self.nbytes), self.dtype, shape=self.shape)
        return ir.Tensor(self.numpy(), self.dtype, shape=self.shape)


class DataFiles:
    """The files that a model's external data may lie in, each looked at once.

    They must lie in the model's folder; where the model's path is a symbolic link, in the folder of the file that it
    leads to (a download cache stores models so). This is what onnxruntime allows.

    Args:
        model: The model's own file.
        contents: All of that file, where it was read already.

    Raises:
        ModelError: The model's file is gone.
    """

    def __init__(self, model: Path, contents: memoryview | None) -> None:
        self.model_name = model.name
        self._folder = model.parent
        self._roots = {Path(os.path.realpath(model.parent)), Path(os.path.realpath(model)).parent}
        self._files = {model.name: DataFile(model, contents)}

    def __getitem__(self, location: str) -> DataFile:
        """The file at ``location``, relative to the model's folder.

        Raises:
            ModelError: The location is absolute, leads out of the model's folder (also through a symbolic link), or is
                no readable file.
        """
        if location not in self._files:
            self._files[location] = self._find(location)
        return self._files[location]

    def _find(self, location: str) -> DataFile:
        if not location or "\0" in location:
            raise ModelError("its location is empty or not a file name")
        windows = PureWindowsPath(location)
        if location.startswith("/") or windows.drive or windows.root:
            raise ModelError("its location is absolute; it must be relative to the model's folder")
        if os.path.normpath(location).split(os.sep)[0] == os.pardir:
            raise ModelError("its location leads out of the model's folder")
        path = self._folder / location
        if not any(Path(os.path.realpath(path)).is_relative_to(root) for root in self._roots):
            raise ModelError("its location leads out of the model's folder through a symbolic link")
        return DataFile(path)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
