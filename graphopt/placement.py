"""Where models run, and what a target's provider leaves to others: told in a sentence, or refused (``--strict-provider``)."""

from __future__ import annotations

from pathlib import Path

from . import targets
from .contracts import Partition
from .errors import MissingError, ModelError
from .targets import Target

_NAMED = 8


def here(target: Target, *, required: bool) -> tuple[Target, list[str]]:
    """What runs models: the target; where that cannot run here, the reference instead, with a note that says so.

    Raises:
        MissingError: The target cannot run here and is ``required``: it is to be timed, or to take all nodes.
    """
    found = targets.availability(target)
    if found.ok:
        return target, []
    why = f"the target {target.name!r} cannot run here: {found.why}"
    if required:
        instead = "To prepare a file for it here: --timing off compares outputs on this processor, and times nothing."
        raise MissingError(why, hint=f"{found.hint} {instead}".strip())
    note = (
        "Outputs were compared on this processor, by onnxruntime: what the device itself computes, and how fast, is not known."
    )
    return targets.load(targets.REFERENCE), [f"{why[0].upper()}{why[1:]}. {note}"]


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
