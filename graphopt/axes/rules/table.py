"""The table that each rule enters itself in."""

from __future__ import annotations

from collections.abc import Callable

from graphopt.axes.analysis import Rule

RULES: dict[str, Rule] = {}
"""By operator; the operators of another domain as ``domain.Operator``."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Enter a rule for these operators."""

    def enter(function: Rule) -> Rule:
        for name in operators:
            assert name not in RULES, f"{name} has a rule already"
            RULES[name] = function
        return function

    return enter
