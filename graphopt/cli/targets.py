"""``graphopt targets``: what models can be deployed to, and whether it runs here."""

from __future__ import annotations

import click

from .options import as_json, verbose


@click.command(short_help="Targets, and whether they run here.")
@as_json
@verbose
def command(json_: bool) -> None:
    """List the targets, each tried on this machine.

    \b
    graphopt targets
    """
    from graphopt import targets

    from .output import console, print_json, table

    found = [(target, targets.availability(target)) for target in map(targets.load, targets.names())]
    if json_:
        print_json([{**target.model_dump(mode="json"), "available": here.ok, "why": here.why} for target, here in found])
        return
    rows = [(t.name, f"{t.runtime} {here.version}", "yes" if here.ok else f"no: {here.why}", t.summary) for t, here in found]
    console().print(table(("target", "runtime", "runs here", "what it is"), rows, numbers_from=4))
