"""Recipes: an ordered list of passes with their options, from YAML, validated before any work.

    summary: what the recipe is for
    passes:
      - simplify                      # with its default options
      - simplify: {fold: false}       # with some

Presets live in ``recipes/*.yaml``; a path to such a file may be given instead of a name. ``--set PASS.OPTION=VALUE``
overrides an option of every step with that pass. A wrong name, here or there, is answered with the nearest right one.

A pass that the recipe does not name is an error, but some (``shapes.fix``, ``shapes.opset``: ``added_by_set``) are asked for by
setting an option: they become the recipe's first steps, in the order in which they are set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import registry
from .contracts import LossyPass, Pass
from .errors import UsageError

_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Step:
    """One pass of a recipe, with the options that were written down (``options``) and the pass made with them."""

    name: str
    options: dict[str, object]
    rewrite: Pass | LossyPass

    @property
    def priced(self) -> bool:
        """Whether how much the pass does is for the core to choose, setting by setting."""
        rewrite = self.rewrite
        return isinstance(rewrite, LossyPass) and rewrite.graded and not rewrite.decided() and rewrite.rounds() == 1


class Settled:
    """The steps that have nothing left to do: they settle what they can do, and nothing has changed since they ran."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, dict[str, object]]] = []

    def holds(self, step: Step) -> bool:
        """Whether the step can be left out."""
        return (step.name, step.options) in self._steps

    def note(self, step: Step, *, changed: bool, kept: bool = True) -> None:
        """Take note that a step ran, whether it changed the model, and whether it was kept."""
        if changed:
            self._steps.clear()
        if kept and step.rewrite.settles:
            self._steps.append((step.name, step.options))


@dataclass(frozen=True)
class Recipe:
    """A validated recipe."""

    name: str
    summary: str
    steps: tuple[Step, ...]

    @property
    def joint(self) -> range:
        """The steps that share the budget, from the first priced one to the last lossy one; none where it is one."""
        lossy = [at for at, step in enumerate(self.steps) if isinstance(step.rewrite, LossyPass)]
        priced = [at for at in lossy if self.steps[at].priced]
        return range(priced[0], lossy[-1] + 1) if priced and len(lossy) > 1 else range(0)

    def share(self, step: Step) -> float:
        """The part of the budget of accuracy that may be spent up to a step.

        The families of lossy passes (``prune``, ``quantize``) get equal parts, in turn, and what one leaves is there for those
        after it: else the first would spend all of it.
        """
        if any(self.steps[at] is step for at in self.joint):
            return 1.0
        lossy = [one.name.partition(".")[0] for one in self.steps if isinstance(one.rewrite, LossyPass)]
        families = [*dict.fromkeys(lossy)]
        family = step.name.partition(".")[0]
        return (1 + families.index(family)) / len(families) if isinstance(step.rewrite, LossyPass) else 1.0


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    summary: str = ""
    passes: list[str | dict[str, dict[str, Any] | None]] = Field(min_length=1)


def names() -> list[str]:
    """Names of the presets that ship with graphopt, sorted."""
    return registry.defined(_FOLDER)


def load(name: str, settings: Iterable[str] = ()) -> Recipe:
    """Return the preset called ``name``, or the recipe in the YAML file of that path.

    Args:
        name: A preset, or a path that ends in .yaml or .yml.
        settings: Overrides, each ``PASS.OPTION=VALUE`` with a YAML value.

    Raises:
        UsageError: No such recipe, pass or option, or a value that the option does not take.
    """
    path, text = registry.definition("recipe", name, _FOLDER)
    return parse(text, path.stem, settings)


def parse(text: str, name: str, settings: Iterable[str] = ()) -> Recipe:
    """Make a recipe from YAML text; see ``load``."""
    try:
        file = _File.model_validate(registry.from_yaml(text))
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}", where=name) from None
    except ValidationError as error:
        raise UsageError(
            f"not a valid recipe: {_problems(error)}",
            where=name,
            hint="A recipe has 'passes:', a list of pass names, each alone or with a mapping of its options.",
        ) from None
    written: list[tuple[str, dict[str, Any]]] = []
    for item in file.passes:
        if isinstance(item, str):
            written.append((item, {}))
        elif len(item) == 1:
            [(pass_name, options)] = item.items()
            written.append((pass_name, options or {}))
        else:
            raise UsageError(f"one list item holds {len(item)} passes: {', '.join(item)}", where=name)
    written = _override(written, settings, name)
    return Recipe(name, file.summary, tuple(_step(pass_name, options) for pass_name, options in written))


def _override(
    written: Sequence[tuple[str, dict[str, Any]]], settings: Iterable[str], recipe: str
) -> list[tuple[str, dict[str, Any]]]:
    """The steps with the value of each ``PASS.OPTION=VALUE`` in the options of every step with that pass."""
    steps = [*written]
    added = 0
    for setting in settings:
        key, equals, text = setting.partition("=")
        pass_name, option = _split(key.strip(), {*registry.pass_names(), *(name for name, _ in steps)})
        if not (equals and pass_name and option):
            raise UsageError(f"--set {setting!r} is not PASS.OPTION=VALUE")
        if not any(name == pass_name for name, _ in steps):
            if pass_name not in registry.pass_names():
                raise registry.unknown_name("pass", pass_name, {name for name, _ in steps})
            if not registry.pass_class(pass_name).added_by_set:
                having = [name for name in names() if any(step.name == pass_name for step in load(name).steps)]
                hint = f"Choose --recipe {' or '.join(having)}." if having else f"Write a recipe of your own with {pass_name}."
                raise UsageError(f"the recipe {recipe!r} has no pass {pass_name!r}", where=f"--set {setting}", hint=hint)
            steps.insert(added, (pass_name, {}))
            added += 1
        try:
            value = registry.from_yaml(text)
        except yaml.YAMLError:
            value = text
        for name, options in steps:
            if name == pass_name:
                options[option] = value
    return steps


def _split(key: str, passes: Iterable[str]) -> tuple[str, str]:
    """``PASS.OPTION`` in two; names of options may hold dots themselves where they are a model's own names."""
    known = max((name for name in passes if key.startswith(f"{name}.")), key=len, default=None)
    if known is not None:
        return known, key[len(known) + 1 :]
    pass_name, _, option = key.rpartition(".")
    return pass_name, option


def _step(name: str, options: dict[str, Any]) -> Step:
    rewrite = registry.pass_class(name)
    known, any_name = rewrite.Options.model_fields, rewrite.Options.model_config.get("extra") == "allow"
    for option in options:
        if option not in known and not any_name:
            raise registry.unknown_name(f"option of {name}:", option, known)
    try:
        validated = rewrite.Options.model_validate(options)
    except ValidationError as error:
        raise UsageError(f"wrong option of {name}: {_problems(error)}") from None
    return Step(name, validated.model_dump(mode="json"), rewrite(validated))


def _problems(error: ValidationError) -> str:
    """What is wrong, place by place; a rule about several options together names them itself."""
    found = []
    for one in error.errors():
        said = one["msg"].removeprefix("Value error, ")
        found.append(f"{'.'.join(map(str, one['loc']))}: {said} (got {one['input']!r})" if one["loc"] else said)
    return "; ".join(found)
