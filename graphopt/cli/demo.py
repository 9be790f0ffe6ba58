"""``graphopt demo``: the main job on a small real model that ships with the package."""

from __future__ import annotations

from pathlib import Path

import click

from .options import verbose


@click.command(short_help="See it work on a small real model, in seconds.")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("graphopt-demo"),
    show_default=True,
    metavar="DIR",
    help="Where the model, the data and the report go.",
)
@verbose
def command(folder: Path) -> int:
    """Optimize a small network that reads handwritten digits, check its accuracy on held-out ones, time it, and report.

    The model and the data are copied to DIR, so that the command which is shown can be run and changed by hand.

    \b
    graphopt demo
    """
    import shlex

    from graphopt import demo, report
    from graphopt.pipeline import optimize
    from graphopt.progress import Bars

    from .summary import show

    files = demo.unpack(folder)
    evidence = folder / "report"
    typed = [
        "graphopt",
        "optimize",
        str(files.model),
        "--eval",
        str(files.data),
        "--max-drop",
        "0.01",
        "--report",
        str(evidence),
    ]
    click.echo(f"$ {shlex.join(typed)}\n")
    with Bars() as bars:
        found = optimize(files.model, eval_data=str(files.data), max_drop=0.01, progress=bars, command=shlex.join(typed))
    report.write(found, evidence)
    show(found, evidence)
    return found.exit_code
