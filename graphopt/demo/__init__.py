"""A small real model and its data: a CNN for scikit-learn's handwritten digits, as torch exports it (made by ``train.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from graphopt.errors import UsageError


@dataclass(frozen=True)
class Files:
    """Where the demo's files are."""

    model: Path
    """Input ``image`` float32 [N, 1, 8, 8], pixels 0..1; output ``logits`` float32 [N, 10]."""
    data: Path
    """The held-out digits: ``image`` and ``labels``."""


def unpack(folder: Path) -> Files:
    """Copy the model and the data into ``folder``, which is made if need be.

    Raises:
        UsageError: The folder cannot be made or written to.
    """
    found = Files(folder / "digits.onnx", folder / "digits.npz")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (found.model, found.data):
            path.write_bytes(files(__name__).joinpath(path.name).read_bytes())
    except OSError as error:
        raise UsageError(
            f"cannot write the demo's files: {error.strerror}", where=str(folder), hint="Choose another -o."
        ) from None
    return found
