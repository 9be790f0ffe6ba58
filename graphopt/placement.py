"""What a target's provider leaves to others: told in a sentence, or refused (``--strict-provider``)."""

from __future__ import annotations

from pathlib import Path

from . import targets
from .contracts import Partition
from .errors import MissingError, ModelError
from .targets import Target

_NAMED = 8


def of(path: Path, target: Target) -> Partition | None:
    """Which provider of a target takes which nodes of a file; None where there is but one, or the file cannot be loaded.

    Raises:
        MissingError: The target cannot run here, or takes no node at all.
    """
    if targets.is_reference(target):
        return None
    try:
        return targets.runtime(target).partition(path, target)
    except ModelError:
        return None


def left_behind(partition: Partition | None, target: Target) -> str | None:
    """How many nodes do not run on the target's provider, and which; None when all do, or it is not known."""
    if partition is None or not partition.left_behind:
        return None
    left, total = partition.left_behind, sum(partition.nodes.values())
    named = ", ".join(f"{name or 'a node'} ({op_type}, on {provider})" for name, op_type, provider in left[:_NAMED])
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return f"{len(left)} of {total} nodes do not run on {target.provider}: {named}{more}"


def require_all(partition: Partition | None, target: Target, where: str) -> None:
    """Refuse a model of which nodes are left behind.

    Raises:
        MissingError: Some are; the message names them.
    """
    problem = left_behind(partition, target)
    if problem is not None:
        raise MissingError(problem, where=where, hint="Leave --strict-provider away to run them elsewhere.")
