"""``graphopt targets``: what models can be deployed to, and whether it runs here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import as_json, verbose

if TYPE_CHECKING:
    from graphopt.contracts import Availability


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
        rows = [
            {
                **t.model_dump(mode="json"),
                "available": here.ok,
                "timed": here.ok and here.timed,
                "why": here.why,
                "mend": here.hint,
            }
            for t, here in found
        ]
        print_json(rows)
        return
    out = console()
    cells = [(t.name, f"{t.runtime} {here.version}", _here(here), t.summary) for t, here in found]
    out.print(table(("target", "runtime", "runs here", "what it is"), cells, numbers_from=4))
    for target, here in found:
        if here.why:
            out.print(f"{target.name}: {here.why}.{_mend(here)}", markup=False, soft_wrap=True)


def _here(here: Availability) -> str:
    return ("yes" if here.timed else "yes, untimed") if here.ok else "no"


def _mend(here: Availability) -> str:
    return f" {here.hint}" if here.hint else ""
