"""Do two model files agree? The whole of ``graphopt compare``: run both on the same samples.

On another target than onnxruntime's CPU provider the second file runs there and the first one on the CPU, so that a target that
computes both wrongly in the same way is noticed; what it makes of the first file is noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from . import answers, evaluate, metrics, model, placement, targets
from .contracts import Progress
from .dataset import open_dataset
from .dataset.generate import generate
from .errors import DataError, ModelError
from .evidence import divergence_row, metric_row
from .report.schema import MetricRow, OutputDivergence


class ComparedFiles(BaseModel):
    """What was found; ``before`` is the first model and ``after`` the second."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    first: str
    second: str
    target: str
    data: str
    generated: bool
    samples: int
    mismatches: list[str]
    """Outputs that cannot be compared at all: missing, of another shape or kind."""
    outputs: dict[str, OutputDivergence]
    metric: MetricRow | None
    notes: list[str]
    wrong: str | None = None
    """What the target computes wrongly; None when its answers are right, or the reference."""

    def beyond(self, *, max_drop: float | None, max_rel: float | None) -> list[str]:
        """What is outside the given bounds, or wrong whatever they are, in words; empty when nothing is."""
        found = [*self.mismatches, *([self.wrong] if self.wrong is not None else [])]
        if max_rel is not None:
            far = {name: row.max_rel for name, row in self.outputs.items() if not row.max_rel <= max_rel}
            found += [f"output {name} differs by {rel:.3g} of its peak, more than {max_rel:g}" for name, rel in far.items()]
        if max_drop is not None and self.metric is not None and not self.metric.drop <= max_drop:
            found.append(f"{self.metric.name} falls by {self.metric.drop:.4g}, more than {max_drop:g}")
        return found


def compare_files(
    first: Path,
    second: Path,
    *,
    data: str | None,
    images: str | None,
    dims: Mapping[str, int],
    metric: str | None,
    target: str,
    strict_provider: bool = False,
    seed: int,
    progress: Progress,
) -> ComparedFiles:
    """Run both files on the same samples.

    Raises:
        ModelError: One cannot be read or run, or they do not have the same inputs and outputs.
        DataError: The data does not fit, or a metric was asked for without data.
        MissingError: The target's runtime is not there, or ``strict_provider`` is not kept.
    """
    where = targets.load(target)
    runtime = targets.runtime(where)
    judge = answers.reference_for(where) or where
    one, other = model.load(first), model.load(second)
    for side, specs in (("inputs", model.input_specs), ("outputs", model.output_specs)):
        names = [sorted(spec.name for spec in specs(each)) for each in (one, other)]
        if names[0] != names[1]:
            raise ModelError(
                f"the models' {side} differ: {', '.join(names[0])} against {', '.join(names[1])}", where=str(second)
            )
    notes = []
    with targets.runtime(judge).open(first, judge) as reference, runtime.open(second, where) as candidate:
        if strict_provider:
            placement.require_all(candidate.partition, where, str(second))
        if (left := placement.left_behind(candidate.partition, where)) is not None:
            notes.append(f"{second.name}: {left}.")
        if data is not None:
            samples = open_dataset(data, model.input_specs(one), images=images)
        elif metric is not None:
            raise DataError(f"the metric {metric!r} needs data", hint="Give --data.")
        else:
            samples = generate(one, dims=dims, seed=seed, runs=reference.accepts)
        chosen = (
            None
            if samples.generated
            else metrics.choose(metric, reference.outputs, samples.labelled, labels_dtype=samples.labels_dtype)
        )
        found = evaluate.compare(reference, candidate, samples, chosen, progress=progress)
    own = answers.check_file(first, where, samples)
    if own is not None:
        notes.append(f"{first.name} ran on {judge.name}, {second.name} on {where.name}.")
    notes += samples.notes
    if samples.generated:
        notes.append("Inputs were generated: they show agreement, not accuracy.")
    return ComparedFiles(
        first=str(first),
        second=str(second),
        target=where.name,
        data=samples.name,
        generated=samples.generated,
        samples=found.samples,
        mismatches=found.mismatched(),
        outputs={name: divergence_row(row) for name, row in found.outputs.items()},
        metric=metric_row(found.metric),
        notes=notes,
        wrong=answers.wrong(first.name, where, own) if own is not None and own.problems else None,
    )
