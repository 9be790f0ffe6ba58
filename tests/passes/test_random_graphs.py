"""2,000 random valid models: the same answers, a valid graph, the same signature, no more nodes, and nothing left to do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import onnx_ir as ir
import pytest

from graphopt import recipe
from graphopt.contracts import Change

import random_graphs
import random_judge
from simplifying import context

COUNT, CHUNK = 2000, 50


@cache
def _passes(name: str) -> random_judge.Rewrite:
    """A recipe, or a pass alone."""
    steps = (recipe.load(name) if name in recipe.names() else recipe.parse(f"passes: [{name}]", "one pass")).steps

    def rewrite(model: ir.Model) -> Sequence[Change]:
        return [change for step in steps for change in step.rewrite.apply(model, context())]

    return rewrite


@pytest.mark.parametrize("first", range(0, COUNT, CHUNK))
def test_a_random_model_gives_the_same_answers_from_a_simpler_graph(first: int):
    """Most go through the recipe ``lossless``, some through one pass. ``random_graphs.model(N)`` draws graph N again."""
    for number in range(first, first + CHUNK):
        passes = {0: "simplify", 1: "fuse"}.get(number % 10, "lossless")
        why, _ = random_judge.complaint(random_graphs.model(number), _passes(passes))
        assert why is None, f"graph {number}, {passes}: {why}"


@pytest.mark.parametrize("number", [7_001_047])
def test_passes_that_are_not_repeated_leave_nothing_to_do(number: int):
    """As the pipeline runs them. ``benchmarks/fuzz.py`` found these: a second run had something left."""

    def rewrite(model: ir.Model) -> Sequence[Change]:
        settled, changes = recipe.Settled(), list[Change]()
        for step in recipe.load("lossless").steps:
            if not settled.holds(step):
                done = [change for change in step.rewrite.apply(model, context()) if change.done]
                settled.note(step, changed=bool(done))
                changes += done
        return changes

    why, _ = random_judge.complaint(random_graphs.model(number), rewrite)
    assert why is None
