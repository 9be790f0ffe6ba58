"""What was observed, kept for the next time it is asked: in memory for a run, and the small results on disk for other runs.

A result is found again by the model's fingerprint (its graph and weights), the data's, the number of samples, the engine that
runs the model, the value's name and the observer. On disk there is one ``.npz`` of plain arrays for each model and data;
whatever is wrong with one, it counts as not there. The folder is ``$GRAPHOPT_CACHE``, else ``graphopt`` in ``$XDG_CACHE_HOME``
or ``~/.cache``; ``GRAPHOPT_CACHE=off`` keeps nothing on disk. When it grows beyond ``LIMIT_BYTES``, the files that were not
used for longest go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.dataset import Dataset
from graphopt.model import fingerprint

from .collectors import Observer, Result

LIMIT_BYTES = 256 << 20
"""Of the folder, and of what one run keeps in memory."""
_RESULT_BYTES = 1 << 20  # larger results are not written to disk
_FORMAT = 1  # another one wherever observers find something else in the same data


def cache_folder() -> Path | None:
    """Where results are kept between runs; None: nowhere."""
    chosen = os.environ.get("GRAPHOPT_CACHE", "")
    if chosen.lower() == "off":
        return None
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    with suppress(RuntimeError):  # there is no home
        return (Path(base) if base else Path.home() / ".cache") / "graphopt"
    return None


class Cache:
    """Results of one run, and of earlier ones.

    Args:
        folder: Where to keep small results; None keeps all in memory only.
        engine: What runs the models.
    """

    def __init__(self, folder: Path | None, engine: str = "") -> None:
        self.folder = folder
        self.engine = engine
        self._results: dict[tuple[str, str], Result] = {}  # in the order in which they came
        self._bytes = 0

    def key(self, model: ir.Model, data: Dataset, samples: int) -> str:
        """What the results of this model on the first ``samples`` of the data are kept under."""
        parts = (_FORMAT, fingerprint(model), data.fingerprint, samples, self.engine)
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()

    def find(self, key: str, wanted: set[tuple[str, Observer]]) -> dict[tuple[str, Observer], Result]:
        """What is known of (value, observer)."""
        names = {asked: _entry(*asked) for asked in wanted}
        missing = {asked for asked, entry in names.items() if (key, entry) not in self._results}
        stored = self._read(key) if missing else {}
        for name, observer in missing:
            entry = names[name, observer]
            fields = [field.name for field in dataclasses.fields(observer.gives)]
            arrays = [stored[f"{entry}.{field}"] for field in fields if f"{entry}.{field}" in stored]
            if len(arrays) == len(fields):
                self._keep(key, entry, observer.gives(*(array if array.ndim else array.item() for array in arrays)))
        return {asked: self._results[key, entry] for asked, entry in names.items() if (key, entry) in self._results}

    def add(self, key: str, found: dict[tuple[str, Observer], Result]) -> None:
        """Keep results."""
        arrays: dict[str, Array] = {}
        for asked, result in found.items():
            entry = _entry(*asked)
            self._keep(key, entry, result)
            fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
            plain = all(isinstance(value, int | float | np.ndarray) for value in fields.values())
            if plain and _bytes(result) <= _RESULT_BYTES:
                arrays |= {f"{entry}.{name}": np.asarray(value) for name, value in fields.items()}
        if arrays and self.folder is not None:
            with suppress(OSError):  # a folder that cannot be written to costs time, not the run
                self._write(self.folder, key, arrays)

    def _keep(self, key: str, entry: str, result: Result) -> None:
        for array in _arrays(result):
            array.flags.writeable = False  # whoever asks gets the same arrays
        size = _bytes(result)
        if size > LIMIT_BYTES:
            return
        self._results[key, entry] = result
        self._bytes += size
        while self._bytes > LIMIT_BYTES:
            oldest = next(iter(self._results))
            self._bytes -= _bytes(self._results.pop(oldest))

    def _read(self, key: str) -> dict[str, Any]:
        if self.folder is None:
            return {}
        path = self.folder / f"{key}.npz"
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            os.utime(path)
        except Exception:  # missing, cut off, not ours, somebody else's format: there is nothing to be found then
            return {}
        return arrays

    def _write(self, folder: Path, key: str, arrays: dict[str, Array]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
            try:
                np.savez_compressed(file, allow_pickle=False, **(self._read(key) | arrays))
                file.close()
                os.replace(file.name, folder / f"{key}.npz")  # as a whole, whoever else writes
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        files = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
        room = LIMIT_BYTES
        for path in files:
            room -= path.stat().st_size
            if room < 0:
                path.unlink(missing_ok=True)


def _entry(name: str, observer: Observer) -> str:
    return hashlib.sha256(f"{name}\n{observer!r}".encode()).hexdigest()[:32]


def _arrays(result: Result) -> list[Array]:
    values = (getattr(result, field.name) for field in dataclasses.fields(result))
    flat = (array for value in values for array in (value if isinstance(value, tuple) else (value,)))
    return [array for array in flat if isinstance(array, np.ndarray)]


def _bytes(result: Result) -> int:
    return sum(array.nbytes for array in _arrays(result))
