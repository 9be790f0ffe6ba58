"""``graphopt inspect``: what a model is made of."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from . import options


@click.command(short_help="Parameters, MACs, operators, the heaviest nodes, who can run it.")
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(min=1), metavar="N", help="How many heavy nodes to show."
)
@options.dims
@options.as_json
@options.verbose
def command(path: Path, top: int, dims: dict[str, int], json_: bool) -> None:
    """Show what MODEL is made of and which targets could run it.

    \b
    graphopt inspect model.onnx
    graphopt inspect model.onnx --top 30 --dim T=128 --json
    """
    from graphopt import inspection, model
    from graphopt.report import units

    from .output import console, print_json, table

    loaded = model.load(path)
    facts = inspection.facts(loaded, path, dims=dims)
    heavy = inspection.heaviest(loaded, top, dims)
    support = inspection.support(path)
    notes: list[str] = loaded.meta.get("graphopt.notes", [])
    if json_:
        more = {"heaviest": [asdict(row) for row in heavy], "targets": [asdict(each) for each in support], "notes": notes}
        print_json({**facts.model_dump(mode="json"), **more})
        return
    out = console()
    lines = [
        ("file", f"{facts.path}, {units.size(facts.bytes).text}, opset {facts.opset}"),
        ("inputs", "\n".join(facts.inputs)),
        ("outputs", "\n".join(facts.outputs)),
        ("nodes", f"{facts.nodes:,}"),
        ("parameters", units.count(facts.parameters).text),
        (
            "MACs",
            "not known without the sizes of dynamic dimensions (--dim NAME=SIZE)"
            if facts.macs is None
            else f"{units.macs(facts.macs).text} for one sample",
        ),
    ]
    out.print(table(("", ""), lines, numbers_from=2))
    out.print(table(("operator", "nodes"), [(name, str(number)) for name, number in facts.operators.items()]))
    rows = [
        (
            row.name,
            row.op_type,
            "?" if row.macs is None else units.macs(row.macs).text,
            units.count(row.parameters).text,
            units.size(row.weight_bytes).text,
        )
        for row in heavy
    ]
    out.print(table(("heaviest nodes", "operator", "MACs", "parameters", "weights"), rows, numbers_from=2))
    taken = [
        (
            each.target,
            "yes" if each.available else f"no: {each.why}",
            ", ".join(f"{provider} {number}" for provider, number in each.nodes.items()),
        )
        for each in support
    ]
    out.print(table(("target", "runs it", "nodes by provider"), taken, numbers_from=3))
    for note in notes:
        out.print(f"note: {note}", markup=False)
