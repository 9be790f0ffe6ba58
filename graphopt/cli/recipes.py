"""``graphopt recipes``: the presets and the passes that they run."""

from __future__ import annotations

import click

from .options import as_json, verbose


@click.command(short_help="Presets and the passes that they run.")
@as_json
@verbose
def command(json_: bool) -> None:
    """List the recipes that ship with graphopt.

    A recipe of your own is a YAML file: 'summary: ...' and 'passes:', a list of pass names, each alone or with its options.

    \b
    graphopt recipes
    graphopt optimize model.onnx --recipe mine.yaml
    """
    from graphopt import recipe

    from .output import console, print_json, table

    found = [recipe.load(name) for name in recipe.names()]
    if json_:
        rows = [{"name": r.name, "summary": r.summary, "passes": [{s.name: s.options} for s in r.steps]} for r in found]
        print_json(rows)
        return
    console().print(
        table(
            ("recipe", "passes", "what it is for"),
            [(r.name, ", ".join(step.name for step in r.steps), r.summary) for r in found],
            numbers_from=3,
        )
    )
