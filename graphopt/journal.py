"""What is done so far, on disk, so that ``--resume`` continues after a kill.

A job's working folder stands beside its output (``.OUT.graphopt``) and holds one folder per pass that was kept, with
the model after it, and ``journal.jsonl``: first a line with the job's key, then one line per finished pass. A line is
written after the pass's model is safely on disk, so whatever the journal says is there is there. The key is a hash over
everything that decides the result (the input's content, recipe, options, target, data, seed, version): a journal with
another key belongs to another job and is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from .errors import UsageError
from .report.schema import PassRow

_NAME = "journal.jsonl"


@dataclass(frozen=True)
class Done:
    """A finished pass: its row in the report, and the file with the model after it (None: the model stayed as it was)."""

    row: PassRow
    stage: Path | None


class Journal:
    """The journal of one job. ``done`` holds what an earlier run of the same job finished."""

    def __init__(self, output: Path, key: Mapping[str, object], *, resume: bool) -> None:
        self.folder = output.with_name(f".{output.name}.graphopt")
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        self.done: list[Done] = self._read() if resume else []
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
            try:
                self.folder.mkdir()
            except OSError as error:
                where = str(self.folder.parent)
                raise UsageError(
                    f"the folder cannot be written to: {error.strerror}", where=where, hint="Choose another -o."
                ) from None
            self._append({"key": self._key})

    def stage(self, index: int, name: str) -> Path:
        """A fresh folder for the model after pass ``index``; what a killed run left there is removed."""
        folder = self.folder / f"{index:02d}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def add(self, row: PassRow, stage: Path | None) -> None:
        """Note that a pass is finished."""
        relative = None if stage is None else stage.relative_to(self.folder).as_posix()
        self._append({"row": row.model_dump(mode="json"), "stage": relative})

    def remove(self) -> None:
        """Remove the working folder: the job is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, line: Mapping[str, object]) -> None:
        with (self.folder / _NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[Done]:
        """The finished passes of an earlier run with the same key; a line that was cut off by the kill ends the list."""
        try:
            first, *rest = (self.folder / _NAME).read_text(encoding="utf-8").splitlines()
            if json.loads(first) != {"key": self._key}:
                return []
        except (OSError, ValueError):
            return []
        done: list[Done] = []
        for line in rest:
            try:
                entry = json.loads(line)
                stage = None if entry["stage"] is None else self.folder / entry["stage"]
                row = PassRow.model_validate(entry["row"])
            except (ValueError, KeyError, TypeError, ValidationError):
                break
            if stage is not None and not stage.is_file():
                break
            done.append(Done(row, stage))
        return done
