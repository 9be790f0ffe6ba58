"""``graphopt bench``: latency, baselines, and the regression gate for CI."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from graphopt.baseline import Regression
    from graphopt.benching import Measured


@click.command(short_help="Latency; baselines and the regression gate for CI.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", "target_names", multiple=True, default=["cpu"], show_default=True, metavar="NAME", help="Repeatable.")
@click.option("--data", metavar="PATH", help="Where the sample comes from that is run. Default: generated.")
@options.images
@options.dims
@click.option(
    "--save-baseline", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Store what was measured."
)
@click.option("--baseline", "against", type=click.Path(path_type=Path), metavar="FILE", help="Compare with what is stored.")
@click.option(
    "--max-regression", default="5%", show_default=True, metavar="X", help="Exit 5 when slower than the baseline by more."
)
@click.option(
    "--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the verdict as JUnit XML."
)
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it for a pull request."
)
@click.option(
    "--time-limit", default=10.0, show_default=True, type=click.FloatRange(min=0.1), metavar="S", help="Seconds a model."
)
@options.seed
@options.as_json
@options.verbose
def command(
    models: tuple[Path, ...],
    target_names: tuple[str, ...],
    data: str | None,
    images: str | None,
    dims: dict[str, int],
    save_baseline: Path | None,
    against: Path | None,
    max_regression: str,
    junit: Path | None,
    markdown: Path | None,
    time_limit: float,
    seed: int,
    json_: bool,
) -> int:
    """Time each MODEL, one sample a run; with --baseline, fail if one became slower than it was.

    Against a baseline the model file that it was taken of is timed too, interleaved, when it is still there: keep it.
    Without it the stored figures serve, with a wide margin and a warning.

    \b
    graphopt bench model.onnx other.onnx
    graphopt bench model.onnx --save-baseline bench.json
    graphopt bench model.onnx --baseline bench.json --max-regression 5% --junit bench.xml --markdown bench.md
    """
    from graphopt import baseline, benching, targets
    from graphopt.errors import UsageError
    from graphopt.progress import Bars

    from .output import print_json

    if against is None and (junit or markdown):
        raise UsageError("--junit and --markdown tell the verdict against a baseline", hint="Give --baseline FILE too.")
    if against is not None and save_baseline is not None:
        raise UsageError("--baseline and --save-baseline exclude each other", hint="Compare first, then save.")
    wanted = [targets.load(name) for name in target_names]
    choices = benching.Options(data, images, dims, time_limit, seed)
    if against is not None:
        bound = baseline.parse_bound(max_regression)
        with Bars() as bars:
            results = benching.gate(models, wanted, against, bound, choices, bars)
        for path, text in ((junit, baseline.junit_xml), (markdown, baseline.markdown)):
            if path is not None:
                _write(path, text(results))
        if json_:
            print_json([asdict(result) for result in results])
        else:
            _show_gate(results)
        return 5 if any(result.failed for result in results) else 0
    with Bars() as bars:
        measured = list(benching.measure(models, wanted, choices, bars))
    if save_baseline is not None:
        from graphopt.environment import fingerprint

        baseline.save(save_baseline, fingerprint(), {key: entry for _, key, entry in measured if entry is not None})
    rows = [row for row, _, _ in measured]
    if json_:
        print_json([row.model_dump(mode="json") for row in rows])
    else:
        _show(rows, save_baseline)
    return max((row.exit_code for row in rows), default=0)


def _write(path: Path, text: str) -> None:
    from graphopt.errors import UsageError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from None


def _show(rows: list[Measured], saved: Path | None) -> None:
    from graphopt.report import units

    from .output import console, table

    out = console()
    cells = []
    for row in rows:
        times = [
            units.milliseconds(value).text for value in (row.p50_ms, row.p90_ms, row.p99_ms, row.load_ms) if value is not None
        ]
        rate = "" if row.runs_per_second is None else f"{row.runs_per_second:,.1f}"
        cells.append((row.model, row.target, *(times or ["failed", "", "", ""]), rate))
    out.print(table(("model", "target", "p50", "p90", "p99", "load", "runs/s"), cells, numbers_from=2))
    for row in rows:
        if row.error is not None:
            out.print(f"{row.model} on {row.target}: {row.error}", markup=False, soft_wrap=True)
    clocks = {f"{row.clock} time, {row.threads} thread{'s' if row.threads != 1 else ''}" for row in rows if row.error is None}
    if clocks:
        out.print(f"One sample a run; {' and '.join(sorted(clocks))}.", markup=False)
    if saved is not None:
        out.print(f"Saved to {saved}. Keep the model files: a later run is timed against them.", markup=False, soft_wrap=True)


def _show_gate(results: list[Regression]) -> None:
    from graphopt.report import units

    from .output import console, table

    out = console()
    cells = []
    for result in results:
        change, low, high = (f"{value - 1:+.1%}" for value in (result.slowdown, result.low, result.high))
        before = units.milliseconds(result.before_ms, result.after_ms).text
        after = units.milliseconds(result.after_ms, result.before_ms).text
        verdict = "SLOWER" if result.failed else "ok"
        cells.append((result.model, verdict, before, after, change, f"{low} to {high}", f"{result.bound:+.1%}", result.how))
    header = ("model", "verdict", "before", "after", "change", "95 % interval", "allowed", "how")
    out.print(table(header, cells, numbers_from=2))
    for result in results:
        for warning in result.warnings:
            out.print(f"{result.model}: {warning}", markup=False, soft_wrap=True)
