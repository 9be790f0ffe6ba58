"""``graphopt package``: a folder with all that a device needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options


@click.command(short_help="A folder with all that a device needs to run a model.")
@click.argument("model", type=click.Path(path_type=Path))
@options.target
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder to make.")
@click.option("--data", metavar="PATH", help="Where the example comes from, the first sample. Default: generated.")
@options.images
@options.dims
@click.option("--force", is_flag=True, help="Replace DIR if it is not empty.")
@options.seed
@options.as_json
@options.verbose
def command(model: Path, output: Path, json_: bool, **choices: Any) -> int:
    """Write what the target needs to run MODEL: the model in its form, what loads it, a README, a manifest with hashes.

    The files are loaded as the device loads them, run on an example and compared with MODEL on onnxruntime's CPU provider;
    nothing is written unless they agree. For the web: a page that runs the model in any browser. For mobile: the .ort
    file, and the configuration of a reduced build.

    \b
    graphopt package model.onnx --target web-wasm -o site/
    graphopt package model.onnx --target mobile -o app/assets/model/ --data samples.npz
    """
    from graphopt import packaging
    from graphopt.progress import Bars

    from .output import console, table

    with Bars() as bars:
        manifest, notes = packaging.package(model, output, progress=bars, **choices)
    if json_:
        click.echo(manifest.model_dump_json(indent=2, by_alias=True))
        return 0
    out = console()
    rows = [(name, f"{file.bytes:,}", file.sha256[:16]) for name, file in manifest.files.items()]
    out.print(table(("file", "bytes", "SHA-256"), rows))
    worst = max((row.max_rel for row in manifest.agreement.values()), default=0.0)
    agreement = "equal to" if worst == 0 else f"within {worst:.1e} of"
    out.print(f"Loaded from the folder and run: the outputs are {agreement} those of {model.name} on the CPU.", markup=False)
    for note in notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"{output} is written; README.md in it tells how to use it.", markup=False, soft_wrap=True)
    return 0
