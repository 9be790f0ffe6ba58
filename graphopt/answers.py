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
from .errors import GraphoptError, ModelError
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


class Original:
    """The original of a run: its time is taken on the target, and its answers count as ``judge`` gives them.

    Args:
        path: The file; ``path`` may be set to another one that the target takes (dimensions fixed).
        target: What the model is deployed to.
        verify: False: nothing is compared, so that ``judge`` is the target itself.
    """

    def __init__(self, path: Path, target: Target, *, verify: bool) -> None:
        self.path = path
        self.name = path.name
        self.target = target
        self.notes: list[str] = []
        self.refused = False
        """Whether the target cannot run it, as a neural processor that takes integers only; its results can be judged still."""
        reference = reference_for(target) if verify else None
        if reference is not None and (why := _refusal(path, reference)) is not None:
            self.notes.append(f"Compared with the original on {target.name} itself, since on {reference.name} {why}.")
            reference = None
        self.judge = reference or target

    def open(self) -> Session:
        """Open it on the target, or on ``judge`` when the target cannot run it (``refused``).

        Raises:
            ModelError: Neither can.
        """
        try:
            return open_on(self.target, self.path)
        except ModelError as error:
            if self.judge == self.target:
                raise
            self.refused = True
            what = f"The target {self.target.name} cannot run the original, so that there is no time to compare with"
            self.notes.append(f"{what}: {error.what}")
            return open_on(self.judge, self.path)

    @property
    def between(self) -> Target:
        """Where results are compared that may not be what the target can run yet."""
        return self.judge if self.refused or self.target.fixed_shapes else self.target

    def reference(self, data: Dataset, folder: Path) -> Reference:
        """What results are compared with on this data; what does not fit in memory is kept in the folder."""
        return Reference(partial(open_on, self.judge, self.path), data, folder=folder)

    def own(
        self, session: Session, reference: Reference, data: Dataset, loaded: ir.Model, progress: Progress
    ) -> Answers | None:
        """What the target (``session``) makes of it; None where there is nothing to compare with.

        Raises:
            ModelError, DataError: It cannot be run.
        """
        if self.refused or self.judge == self.target:
            return None
        with progress.stage(f"comparing {self.target.name} with {self.judge.name}"):
            own = check(session, reference, self.target, data, quantized=is_quantized(loaded), progress=progress)
        self.notes += [wrong(self.name, self.target, own)] if own.problems else []
        return own


def open_on(target: Target, path: Path) -> Session:
    """Open a file on a target, as it is timed."""
    return targets.runtime(target).open(path, target, SessionOptions(threads=target.threads))


def wrong(name: str, target: Target, own: Answers) -> str:
    """The sentence that flags a target."""
    return f"The target {target.name} computes {name} wrongly, by {own.reference}: {'; '.join(own.problems)}."


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
    reference = reference_for(target)
    if reference is None:
        return None
    with open_on(target, path) as session, open_on(reference, path) as right:
        return check(session, Reference(right, data), target, data, quantized=is_quantized(model.load(path)))


def is_quantized(loaded: ir.Model) -> bool:
    """Whether a model computes in integers somewhere, so that targets round differently on the way."""
    return any(node.op_type in _INTEGER or node.op_type.startswith("QLinear") for node in model.nodes(loaded))


def _refusal(path: Path, reference: Target) -> str | None:
    """Why the reference cannot load a model; None when it can."""
    try:
        open_on(reference, path).close()
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
