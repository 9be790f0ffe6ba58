"""A context with data, and sessions on onnxruntime, for tests of what observes a model."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import model, targets
from graphopt.contracts import Context, Session, SessionOptions, Silent
from graphopt.dataset import Dataset, open_dataset
from graphopt.model import input_specs


@contextmanager
def context(proto: onnx.ModelProto | ir.Model, **arrays: np.ndarray) -> Iterator[Context]:
    """A context whose data are ``arrays``, named as the inputs, samples along the first axis."""
    loaded = proto if isinstance(proto, ir.Model) else ir.from_proto(proto)
    target = targets.load("cpu")
    runtime = targets.runtime(target)
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(1000))

        def open_session(candidate: ir.Model) -> Session:
            path = model.save(candidate, Path(folder) / f"{next(count)}.onnx").path
            return runtime.open(path, target, SessionOptions())

        np.savez(Path(folder) / "data.npz", **arrays)
        data: Dataset = open_dataset(Path(folder) / "data.npz", input_specs(loaded))
        data = dataclasses.replace(data, name="data.npz")
        yield Context(target=target, open_session=open_session, data=data, rng=np.random.default_rng(0), progress=Silent())
