"""``graphopt inspect``: what a model is made of."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.inspection import Support


@click.command(short_help="Parameters, MACs, operators, the heaviest nodes, who can run it.")
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(min=1), metavar="N", help="How many heavy nodes to show."
)
@click.option(
    "--target",
    "target_names",
    multiple=True,
    metavar="NAME",
    help="Tell how this target cuts the model into partitions, and which nodes stay behind. Repeatable.",
)
@options.dims
@options.as_json
@options.verbose
def command(path: Path, top: int, target_names: tuple[str, ...], dims: dict[str, int], json_: bool) -> None:
    """Show what MODEL is made of and which targets could run it.

    A target's provider takes some nodes and leaves the rest to the CPU; nodes that it takes in one go are a partition, and
    each further one costs copies back and forth. Where the provider is not here, a table of its operators is asked instead:
    that is an estimate. --dim fixes dynamic dimensions for it, as --set shapes.fix.NAME=SIZE does when optimizing.

    \b
    graphopt inspect model.onnx
    graphopt inspect model.onnx --target nnapi --target coreml --dim batch=1
    graphopt inspect model.onnx --top 30 --dim T=128 --json
    """
    from graphopt import inspection, model, targets
    from graphopt.progress import Bars
    from graphopt.report import units

    from .output import console, print_json, table

    loaded = model.load(path)
    facts = inspection.facts(loaded, path, dims=dims)
    heavy = inspection.heaviest(loaded, top, dims)
    wanted = [targets.load(name) for name in target_names or targets.names()]
    with Bars() as bars:
        support = inspection.support(loaded, path, wanted, bars, dims)
    notes: list[str] = loaded.meta.get("graphopt.notes", [])
    if json_:
        more = {"heaviest": [asdict(row) for row in heavy], "targets": [each.row() for each in support], "notes": notes}
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
    if rows:
        out.print(table(("heaviest nodes", "operator", "MACs", "parameters", "weights"), rows, numbers_from=2))
    if target_names:
        for each in support:
            _show_cut(each)
    else:
        _show_targets(support)
    for note in notes:
        out.print(f"note: {note}", markup=False)


def _show_targets(support: Sequence[Support]) -> None:
    """How each target cuts the model, a line each."""
    from graphopt.operators import NOT_FIXED

    from .output import console, table

    out = console()
    cuts = [(each, each.cut) for each in support if each.cut is not None]
    rows = [
        (
            each.target,
            "yes" if each.available else "no",
            str(cut.partitions),
            f"{cut.taken:,} of {cut.nodes:,}",
            "its provider" if each.available else "a table",
        )
        for each, cut in cuts
    ]
    out.print(table(("target", "runs here", "partitions", "nodes that it takes", "judged by"), rows, numbers_from=2))
    if unknown := [each.target for each in support if each.cut is None]:
        out.print(f"Not known here: {', '.join(unknown)}.", markup=False, soft_wrap=True)
    if strict := [each.target for each, cut in cuts if any(why == NOT_FIXED for _, why, _ in cut.reasons)]:
        out.print(
            f"These take fixed shapes only, which --dim NAME=SIZE gives: {', '.join(strict)}.", markup=False, soft_wrap=True
        )
    out.print("What stays behind, and why: --target NAME. Why a target does not run here: graphopt targets.", soft_wrap=True)


def _show_cut(found: Support) -> None:
    """How one target cuts the model, and what stays behind."""
    from graphopt.operators import NOT_FIXED

    from .output import console, table

    out, cut = console(), found.cut
    if cut is None:
        out.print(
            f"{found.target}: not known; {found.why}, and there is no table of its operators.", markup=False, soft_wrap=True
        )
        return
    out.print(f"{found.target}: {cut.told}", markup=False, style="bold")
    if cut.judged_by == "provider":
        out.print(f"  said by {cut.source}, which loaded the file", markup=False)
    else:
        out.print(f"  an estimate from a table; {found.why}", markup=False, soft_wrap=True)
        out.print(f"  the table: {cut.source}", markup=False, soft_wrap=True)
    rows = [(operator, f"{number:,}", why) for operator, why, number in cut.reasons]
    if rows:
        out.print(table(("stays behind", "nodes", "why"), rows, numbers_from=3))
    if any(why == NOT_FIXED for _, why, _ in cut.reasons):
        out.print(
            "  --dim NAME=SIZE gives dynamic dimensions of the inputs a size here, as shapes.fix does when optimizing",
            markup=False,
        )
    for note in cut.notes:
        out.print(f"  not checked: {note}", markup=False, soft_wrap=True)
    out.print()
