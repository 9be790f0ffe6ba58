"""``graphopt passes``: the installed passes and their options."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click

from .options import as_json, verbose


@click.command(short_help="Passes that are installed, and their options.")
@click.argument("name", required=False)
@as_json
@verbose
def command(name: str | None, json_: bool) -> None:
    """List the installed passes, or the options of the pass NAME.

    \b
    graphopt passes
    graphopt passes simplify
    """
    from graphopt import registry
    from graphopt.contracts import LossyPass

    from .output import console, print_json, table

    classes = [registry.pass_class(each) for each in ([name] if name else registry.pass_names())]
    if json_:
        rows = [{"name": c.name, "summary": c.summary, "options": c.Options.model_json_schema()} for c in classes]
        print_json(rows)
        return
    out = console()
    if name is None:
        kinds = ("lossless", "lossy")
        rows_ = [(c.name, kinds[issubclass(c, LossyPass)], c.summary) for c in classes]
        out.print(table(("pass", "kind", "what it does"), rows_, numbers_from=3))
        return
    [found] = classes
    out.print(found.summary, markup=False)
    options = [
        (
            f"{found.name}.{key}",
            _values(field.annotation),
            _default(field.get_default(call_default_factory=True)),
            field.description or "",
        )
        for key, field in found.Options.model_fields.items()
    ]
    if found.Options.model_config.get("extra") == "allow":
        options.append((f"{found.name}.NAME", _values(int), "", (found.Options.__doc__ or "").split("\n")[0]))
    if options:
        out.print(table(("--set", "values", "default", "what it does"), options, numbers_from=4))


_KINDS = {bool: "true, false", int: "whole number", float: "number", str: "text"}


def _values(annotation: Any) -> str:
    """What may be written after the equals sign."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _values(get_args(annotation)[0])
    if origin is dict:
        return f"{{NAME: {_values(get_args(annotation)[1])}, ...}}"
    if origin is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if origin in (Union, UnionType):
        return ", ".join(_values(one) for one in get_args(annotation) if one is not NoneType)
    return _KINDS.get(annotation) or str(annotation)


def _default(value: Any) -> str:
    return "" if value is None or value == {} else str(value).lower() if isinstance(value, bool) else str(value)
