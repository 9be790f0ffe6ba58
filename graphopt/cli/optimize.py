"""``graphopt optimize``: the main command."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from . import options


@click.command(short_help="Write a smaller or faster model, with the evidence.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("more", nargs=-1, metavar="")
@click.option("-o", "--output", metavar="FILE", help="Where to write. Default: MODEL.opt.onnx beside the input.")
@click.option("--recipe", default="lossless", show_default=True, metavar="NAME|FILE", help="What to do ('graphopt recipes').")
@options.target
@click.option(
    "--data", metavar="PATH", help="Unlabelled samples: .npz, a folder of .npz, ONNX test data or images, module:function."
)
@click.option("--eval", "eval_data", metavar="PATH", help="Samples with labels, for the metric. Same forms as --data.")
@options.images
@options.dims
@options.metric
@click.option("--max-drop", type=click.FloatRange(min=0), metavar="X", help="How far the metric may fall, absolute: 0.01.")
@click.option(
    "--goal", type=click.Choice(["latency", "size"]), default="latency", show_default=True, help="What must not get worse."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PASS.OPTION=VALUE",
    help="Set an option of a pass ('graphopt passes'); shapes.* are added to the recipe by it. Repeatable.",
)
@click.option(
    "--contrib",
    is_flag=True,
    help="Allow onnxruntime's own operators (com.microsoft: attention, normalization, Gelu) where they are measured to be "
    "faster. The same as --set fuse.contrib=true.",
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave the sites alone whose names match. Repeatable.")
@click.option(
    "--report", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write report.json, .md, .html."
)
@click.option(
    "--external-data",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Weights in a file beside the output; auto: when they take 1.5 GB or more.",
)
@click.option("--verify", type=click.Choice(["on", "off"]), default="on", show_default=True, help="Compare with the original.")
@click.option("--timing", type=click.Choice(["on", "off"]), default="on", show_default=True, help="Time against the original.")
@click.option(
    "--time-limit", default=10.0, show_default=True, type=click.FloatRange(min=0.1), metavar="S", help="Seconds of timing."
)
@options.strict_provider
@click.option("--resume", is_flag=True, help="Continue a run of the same job that was killed.")
@options.seed
@options.as_json
@options.verbose
def command(
    model: Path,
    more: tuple[str, ...],
    output: str | None,
    folder: Path | None,
    settings: tuple[str, ...],
    contrib: bool,
    json_: bool,
    verify: str,
    timing: str,
    **choices: Any,
) -> int:
    """Rewrite MODEL, check every step against the original, time the result, and write it if it pays.

    The input is never changed, and nothing is written unless the outputs agree (or the metric holds --max-drop) and the
    file is not slower than the original.

    \b
    graphopt optimize model.onnx
    graphopt optimize model.onnx -o small.onnx --eval test.npz --report evidence/
    graphopt optimize model.onnx --eval photos/ --images resize=256,crop=224,mean=0.485:0.456:0.406,std=0.229:0.224:0.225
    graphopt optimize model.onnx --set shapes.fix.batch=1 --set shapes.opset.version=20
    graphopt optimize model.onnx --set simplify.fold=false --dim batch=4 --json > report.json
    graphopt optimize bert.onnx --contrib --data samples/
    graphopt optimize model.onnx --target openvino-cpu --recipe int8 --eval test.npz --strict-provider
    """
    from graphopt import report
    from graphopt.errors import UsageError
    from graphopt.pipeline import optimize
    from graphopt.progress import Bars

    if more:
        hint = f"The output is given with -o: graphopt optimize {shlex.join([str(model), '-o', more[0]])}"
        raise UsageError(f"{more[0]!r} is one path too many", hint=hint)
    if folder is not None:
        report.make_folder(folder)
    with Bars() as bars:
        found = optimize(
            model,
            output,
            settings=[*settings, *(["fuse.contrib=true"] if contrib else [])],
            verify=verify == "on",
            timing=timing == "on",
            progress=bars,
            command=shlex.join(["graphopt", *sys.argv[1:]]),
            **choices,
        )
    if folder is not None:
        report.write(found, folder)
    if json_:
        click.echo(report.to_json(found))
    else:
        from .summary import show

        show(found, folder)
    return found.exit_code
