"""The errors that a user can meet, each with the exit code of the command line.

An error is one short paragraph: *what* is wrong, *where* (node, input, file) and what to do about it (*hint*). They are raised
where the user's mistake is known; anything else that escapes is a defect in graphopt and ends with exit code 1.
"""

from __future__ import annotations


class GraphoptError(Exception):
    """Base of all errors that are told to the user without a traceback.

    Args:
        what: One sentence that says what is wrong.
        where: The file, node, input or option that it is about.
        hint: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return text if self.hint is None else f"{text}\n{self.hint}"


class UsageError(GraphoptError):
    """A wrong option, name or recipe."""

    exit_code = 2


class ModelError(GraphoptError):
    """The model cannot be read, is not valid ONNX, or cannot be run."""

    exit_code = 3


class DataError(GraphoptError):
    """The data cannot be read or does not fit the model."""

    exit_code = 4


class BudgetError(GraphoptError):
    """The accuracy budget, the goal or a regression bound was not met."""

    exit_code = 5


class MissingError(GraphoptError):
    """A runtime, an execution provider or an optional package is missing."""

    exit_code = 6
