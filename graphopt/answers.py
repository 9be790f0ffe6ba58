"""Does a target compute what the model says? The original on the target against the original on onnxruntime's CPU provider.

A target may be quick and wrong: a kernel with a defect, a type that it rounds more than it tells, a back end that only writes
files. Comparing a result with the original *on the target* would not notice, both being wrong in the same way; so results are
compared with the original's outputs on the reference, and the target's own answers are judged once:

    float model        max_rel of each output at most the tolerance of the type that the target computes in
    quantized model    SQNR of each output at least 20 dB: targets round between integer kernels in their own ways
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from . import evaluate, model, targets
from .contracts import Progress, Session, SessionOptions, TensorSpec
from .dataset import Dataset
from .errors import GraphoptError
from .evaluate import Divergence, Reference
from .targets import Target

SAMPLES = 16
LEAST_SQNR_DB = 20.0
_SECONDS = 20.0  # a target that needs longer for all samples gets fewer
_INTEGER = {"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulNBits", "DequantizeLinear"}


@dataclass(frozen=True)
class Answers:
    """What a target made of the original, on a few samples."""

    reference: str
    samples: int
    outputs: Mapping[str, Divergence]
    problems: Sequence[str]
    tolerances: Mapping[str, float]
    """The max_rel of an output on this target that counts as equal to the reference's: at least twice the original's."""


def reference_for(target: Target) -> Target | None:
    """The target whose answers count; None when ``target`` runs models in the same way, or the reference is not here."""
    if targets.is_reference(target):
        return None
    reference = targets.load(targets.REFERENCE)
    return reference if targets.availability(reference).ok else None


def establish(
    path: Path,
    target: Target,
    session: Session,
    data: Dataset,
    *,
    quantized: bool,
    verify: bool,
    folder: Path,
    progress: Progress,
) -> tuple[Reference, Answers | None, list[str]]:
    """What results are compared with, what the target itself makes of the original, and what the user should know of both.

    Args:
        path: The original.
        target: What results are run on.
        session: The original on the target.
        data: What results are compared on.
        quantized: Whether the original computes in integers (``is_quantized``).
        verify: False: results are compared with the original on the target, if they are.
        folder: Where outputs go that do not fit in memory.
        progress: Told each sample.

    Raises:
        ModelError, DataError: The target cannot run the original.
    """
    judge, notes = reference_for(target) if verify else None, []
    if judge is not None and (why := _refused(path, judge)) is not None:
        notes.append(f"Compared with the original on {target.name} itself, since on {judge.name} {why}.")
        judge = None
    reference = Reference(partial(_open, path, judge or target), data, folder=folder)
    if judge is None:
        return reference, None, notes
    with progress.stage(f"comparing {target.name} with {judge.name}"):
        own = check(session, reference, target, data, quantized=quantized, progress=progress)
    if own.problems:
        notes.append(wrong(path, target, own))
    return reference, own, notes


def wrong(path: Path, target: Target, own: Answers) -> str:
    """The sentence that flags a target."""
    return f"The target {target.name} computes {path.name} wrongly, by {own.reference}: {'; '.join(own.problems)}."


def check(
    session: Session,
    reference: Reference,
    target: Target,
    data: Dataset,
    *,
    quantized: bool,
    progress: Progress | None = None,
) -> Answers:
    """Judge what a target makes of the original.

    Args:
        session: The original on the target.
        reference: The original on the reference, on the same data.
        target: What is judged; its ``precision`` says how near float32 must be.
        data: The first samples of it are used.
        quantized: Whether the original computes in integers (``is_quantized``).
        progress: Told each sample.

    Raises:
        ModelError, DataError: The original cannot be run.
    """
    first = next(iter(data.first(1).batches()))
    begun = time.perf_counter()
    session.run(first.feed)
    samples = max(1, min(SAMPLES, int(_SECONDS / max(time.perf_counter() - begun, 1e-6))))
    found = evaluate.compare(reference, session, data.first(samples), progress=progress)
    precision = evaluate.TOLERANCES[target.precision]
    floats = [spec for spec in session.outputs if spec.dtype.name in evaluate.TOLERANCES]
    allowed = {spec.name: max(evaluate.TOLERANCES[spec.dtype.name], precision) for spec in floats}
    problems = _too_noisy(found, floats) if quantized else evaluate.problems(found, session.outputs, allowed)
    if not problems:
        own = {name: 2 * found.outputs[name].max_rel for name in allowed if name in found.outputs}
        allowed = {name: max(bound, own.get(name, 0.0)) for name, bound in allowed.items()}
    return Answers(targets.REFERENCE, found.samples, found.outputs, problems, allowed)


def check_file(path: Path, target: Target, data: Dataset) -> Answers | None:
    """Judge what a target makes of a model file; None when there is nothing to compare with (``reference_for``).

    Raises:
        ModelError, DataError, MissingError: The target cannot run it.
    """
    judge = reference_for(target)
    if judge is None:
        return None
    with _open(path, target) as session, _open(path, judge) as right:
        return check(session, Reference(right, data), target, data, quantized=is_quantized(model.load(path)))


def is_quantized(loaded: ir.Model) -> bool:
    """Whether a model computes in integers somewhere, so that targets round differently on the way."""
    return any(node.op_type in _INTEGER or node.op_type.startswith("QLinear") for node in model.nodes(loaded))


def _open(path: Path, target: Target) -> Session:
    return targets.runtime(target).open(path, target, SessionOptions(threads=target.threads))


def _refused(path: Path, judge: Target) -> str | None:
    """Why the reference cannot load a model; None when it can."""
    try:
        _open(path, judge).close()
    except GraphoptError as error:
        return error.what
    return None


def _too_noisy(found: evaluate.Evaluation, outputs: Sequence[TensorSpec]) -> list[str]:
    low = {spec.name: found.outputs[spec.name].sqnr_db for spec in outputs if spec.name in found.outputs}
    noisy = [(name, db) for name, db in low.items() if not db >= LEAST_SQNR_DB and name not in found.mismatches]
    return [
        *found.mismatched(),
        *(f"output {name!r} has a signal-to-noise ratio of {db:.1f} dB, less than {LEAST_SQNR_DB:g} dB" for name, db in noisy),
    ]
