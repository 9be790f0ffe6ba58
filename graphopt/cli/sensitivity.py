"""``graphopt sensitivity``: which places of a model cost most accuracy?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options


@click.command(short_help="Rank the places of a model by what changing each alone costs.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="PATH", help="Samples, for calibration and comparison; labels are not needed.")
@click.option(
    "--recipe", default="int8-static", show_default=True, metavar="NAME|FILE", help="One with a pass that costs accuracy."
)
@options.target
@options.images
@click.option(
    "--samples", default=32, show_default=True, type=click.IntRange(min=1), metavar="N", help="Samples to compare on."
)
@click.option("--top", default=20, show_default=True, type=click.IntRange(min=1), metavar="N", help="Sites to print.")
@click.option("--set", "settings", multiple=True, metavar="PASS.OPTION=VALUE", help="Set an option of a pass. Repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not try the sites whose names match. Repeatable.")
@click.option(
    "--report", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write sensitivity.json, .html."
)
@options.seed
@options.as_json
@options.verbose
def command(model: Path, top: int, folder: Path | None, json_: bool, **choices: Any) -> int:
    """Change each site of MODEL alone, and rank the sites by how far the outputs move.

    The first in the list are what to leave alone (--exclude) when a model loses too much; 'graphopt optimize --max-drop'
    does that by itself. SQNR is the power of the outputs over that of the change: at 40 dB they move by one per cent.

    \b
    graphopt sensitivity model.onnx --data calib.npz
    graphopt sensitivity model.onnx --data photos/ --images resize=256,crop=224 --top 10 --report evidence/
    graphopt sensitivity model.onnx --data calib.npz --recipe int8-dynamic --json > ranking.json
    """
    from graphopt import report
    from graphopt.progress import Bars
    from graphopt.ranking import rank
    from graphopt.report import units

    from .output import console, print_json, table

    if folder is not None:
        report.make_folder(folder)
    with Bars() as bars:
        found = rank(model, progress=bars, **choices)
    if folder is not None:
        report.write_ranking(found, folder)
    if json_:
        print_json(found.model_dump(mode="json"))
        return 0
    out = console()
    for one in found.passes:
        rows = [
            (row.site, row.op_type, row.setting, units.number(row.sqnr_db).text, f"{row.damage:.2e}") for row in one.sites[:top]
        ]
        out.print(table((f"{one.name}: site", "operator", "setting", "SQNR dB", "noise / signal"), rows, numbers_from=3))
        more = len(one.sites) - len(rows)
        said = f"{len(one.sites)} sites, {len(one.declined)} declined"
        if more > 0:
            said += f"; {more} less sensitive ones are not shown"
        out.print(said, markup=False)
    out.print(f"{found.samples} samples from {found.data}, {found.seconds:.1f} s", markup=False)
    for note in found.notes:
        out.print(note, markup=False)
    if folder is not None:
        out.print(f"{folder / 'sensitivity.html'} shows all of it.", markup=False)
    return 0
