"""``graphopt compare``: do two models agree?"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command(short_help="Do two models agree, and by how much not.")
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--data", metavar="PATH", help="Samples, with labels if there are any. Default: generated inputs.")
@options.images
@options.dims
@options.metric
@options.target
@options.strict_provider
@click.option(
    "--max-drop", type=click.FloatRange(min=0), metavar="X", help="Exit 5 if the metric of B is lower by more than X."
)
@click.option(
    "--max-rel", type=click.FloatRange(min=0), metavar="X", help="Exit 5 if an output differs by more than X of its peak."
)
@options.seed
@options.as_json
@options.verbose
def command(
    first: Path,
    second: Path,
    data: str | None,
    images: str | None,
    dims: dict[str, int],
    metric: str | None,
    target: str,
    strict_provider: bool,
    max_drop: float | None,
    max_rel: float | None,
    seed: int,
    json_: bool,
) -> int:
    """Run A and B on the same samples: how far their outputs are apart, output by output, and the metric of each.

    On another target than cpu, B runs there and A on onnxruntime's CPU provider. If the target computes A wrongly, beyond what
    its precision explains, the command ends in exit code 5 whatever B does.

    \b
    graphopt compare model.onnx model.opt.onnx --data test.npz
    graphopt compare float.onnx int8.onnx --data photos/ --max-drop 0.01
    graphopt compare float.onnx int8.onnx --data test.npz --target qnn-htp --strict-provider
    """
    from graphopt.comparison import compare_files
    from graphopt.progress import Bars

    from .output import console, print_json, table

    with Bars() as bars:
        found = compare_files(
            first,
            second,
            data=data,
            images=images,
            dims=dims,
            metric=metric,
            target=target,
            strict_provider=strict_provider,
            seed=seed,
            progress=bars,
        )
    problems = found.beyond(max_drop=max_drop, max_rel=max_rel)
    if json_:
        print_json({**found.model_dump(mode="json"), "problems": problems})
        return 5 if problems else 0
    out = console()
    rows = [
        (
            name,
            f"{d.max_abs:.3g}",
            f"{d.max_rel:.3g}",
            f"{d.cosine:.8f}",
            "equal" if d.sqnr_db == float("inf") else f"{d.sqnr_db:.1f}",
        )
        for name, d in found.outputs.items()
    ]
    out.print(table(("output", "max abs", "max rel", "cosine", "SQNR dB"), rows))
    if found.metric is not None:
        m = found.metric
        out.print(f"{m.name}: {m.before:.4g} (A), {m.after:.4g} (B), drop {m.drop:.4g}", markup=False)
    out.print(f"{found.samples} samples from {found.data}", markup=False)
    for note in (*found.notes, *(f"exit 5: {problem}" for problem in problems)):
        out.print(note, markup=False)
    return 5 if problems else 0
