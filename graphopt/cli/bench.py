"""``graphopt bench``: latency, baselines, and the regression gate for CI."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.baseline import Regression
    from graphopt.benching import Measured, Options
    from graphopt.targets import Target


def _numbers(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Read ``1,4,16``."""
    texts = [] if value is None else [text.strip() for text in value.split(",")]
    if not all(text.isascii() and text.isdigit() and int(text) > 0 for text in texts):
        raise click.BadParameter(f"{value!r} is no list of numbers of at least 1, such as 1,4,16")
    return tuple(dict.fromkeys(map(int, texts)))


@click.command(short_help="Latency, memory, cold start; baselines and the regression gate for CI.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--target",
    "target_names",
    multiple=True,
    default=["cpu"],
    show_default=True,
    metavar="NAME",
    help="Repeatable; all: every target, those that do not run here being listed only.",
)
@click.option(
    "--batch", "batches", callback=_numbers, metavar="N,...", help="Samples in a run, swept: 1,4,16. Default: the target's."
)
@click.option("--threads", callback=_numbers, metavar="N,...", help="Threads, swept: 1,2. Default: the target's.")
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
@click.option(
    "--cold-start",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Also run each model in a fresh process: time until the first answer, and peak memory.",
)
@click.option(
    "--report",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write bench.json and bench.html.",
)
@options.strict_provider
@options.seed
@options.as_json
@options.verbose
def command(
    models: tuple[Path, ...],
    target_names: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    data: str | None,
    images: str | None,
    dims: dict[str, int],
    save_baseline: Path | None,
    against: Path | None,
    max_regression: str,
    junit: Path | None,
    markdown: Path | None,
    time_limit: float,
    cold_start: str,
    folder: Path | None,
    strict_provider: bool,
    seed: int,
    json_: bool,
) -> int:
    """Measure each MODEL on each target; with --baseline, fail if one became slower than it was.

    A target that is named and does not run here ends in exit code 6, after the others were measured; with --target all
    only those that run here count. One that computes something else than onnxruntime's CPU provider ends in exit code 5.

    Against a baseline the model file that it was taken of is timed too, interleaved, when it is still there: keep it.
    Without it the stored figures serve, with a wide margin and a warning.

    \b
    graphopt bench model.onnx other.onnx --target cpu --target openvino-cpu
    graphopt bench model.onnx --batch 1,4,16 --threads 1,2 --report bench/
    graphopt bench model.onnx --target all
    graphopt bench model.onnx --save-baseline bench.json
    graphopt bench model.onnx --baseline bench.json --max-regression 5% --junit bench.xml --markdown bench.md
    """
    from graphopt import benching, report, targets
    from graphopt.errors import UsageError

    every = "all" in target_names
    if against is None and (junit or markdown):
        raise UsageError("--junit and --markdown tell the verdict against a baseline", hint="Give --baseline FILE too.")
    if against is not None and save_baseline is not None:
        raise UsageError("--baseline and --save-baseline exclude each other", hint="Compare first, then save.")
    if (batches or threads or every) and (against or save_baseline):
        hint = "Name the targets, and leave --batch and --threads away."
        raise UsageError("a baseline is of named targets, in their own batch size and threads", hint=hint)
    wanted = [targets.load(name) for name in (targets.names() if every else target_names)]
    choices = benching.Options(data, images, dims, time_limit, seed, batches, threads, cold_start == "on", strict_provider)
    if against is not None:
        return _gate(models, wanted, against, max_regression, choices, {"junit": junit, "markdown": markdown}, json_=json_)
    if folder is not None:
        report.make_folder(folder)
    rows = _measure(models, wanted, choices, save_baseline, folder, json_=json_)
    return _exit_code(rows, every=every)


def _exit_code(rows: list[Measured], *, every: bool) -> int:
    """The worst row's; of ``--target all``, targets that do not run here do not count if another one did."""
    ran = any(row.error is None for row in rows)
    return max((row.exit_code for row in rows if not (every and ran and row.absent)), default=0)


def _measure(
    models: Sequence[Path],
    wanted: Sequence[Target],
    choices: Options,
    save_baseline: Path | None,
    folder: Path | None,
    *,
    json_: bool,
) -> list[Measured]:
    """Measure, save and print."""
    from graphopt import baseline, benching, report
    from graphopt.environment import fingerprint
    from graphopt.progress import Bars

    from .output import print_json

    with Bars() as bars:
        measured = list(benching.measure(models, wanted, choices, bars))
    if save_baseline is not None:
        baseline.save(save_baseline, fingerprint(), {key: entry for _, key, entry in measured if entry is not None})
    rows = [row for row, _, _ in measured]
    if folder is not None:
        report.write_bench(rows, folder)
    if json_:
        print_json([row.model_dump(mode="json") for row in rows])
    else:
        _show(rows, save_baseline, folder)
    return rows


def _gate(
    models: Sequence[Path],
    wanted: Sequence[Target],
    against: Path,
    max_regression: str,
    choices: Options,
    files: Mapping[str, Path | None],
    *,
    json_: bool,
) -> int:
    """Compare with a baseline; the exit code."""
    from graphopt import baseline, benching
    from graphopt.progress import Bars
    from graphopt.report import gate

    from .output import print_json

    bound = baseline.parse_bound(max_regression)
    with Bars() as bars:
        results = benching.gate(models, wanted, against, bound, choices, bars)
    for name, text in (("junit", gate.junit_xml), ("markdown", gate.markdown)):
        if (path := files[name]) is not None:
            _write(path, text(results))
    if json_:
        print_json([asdict(result) for result in results])
    else:
        _show_gate(results)
    return 5 if any(result.failed for result in results) else 0


def _show(rows: list[Measured], saved: Path | None, folder: Path | None) -> None:
    """One table of what was measured, and below it what was not, and why."""
    from graphopt.report.bench import columns, reasons

    from .output import console, table

    out = console()
    header, cells = columns(rows)
    if cells:
        out.print(table(header, cells, numbers_from=2))
    for reason in reasons(rows):
        out.print(reason, markup=False, soft_wrap=True)
    if saved is not None:
        out.print(f"Saved to {saved}. Keep the model files: a later run is timed against them.", markup=False, soft_wrap=True)
    if folder is not None:
        out.print(f"{folder / 'bench.html'} shows all of it.", markup=False, soft_wrap=True)


def _write(path: Path, text: str) -> None:
    from graphopt.errors import UsageError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from None


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
