"""How far a model's own outputs move when its data change in the last place: what no exact rewrite can be blamed for.

What is computed in floating point is exact for data that are a few roundings off (Wilkinson 1963, backward error). A rewrite
rounds otherwise, so its outputs are those for other such data. Mostly they move by some roundings. But a quantizer, a Round or
an ArgMax makes a whole level of a rounding at its border, and the layers behind it pass that on: the model blows up rounding,
and no one tolerance for all models can tell a right rewrite from a wrong one. The model itself can be asked (estimation of
condition by small random samples, Kenney and Laub 1994):

    noise = the largest |f(d') - f(d)| of a few trials,    d' = d (1 + eps e),    e uniform in [-4, 4]

d being all inputs and weights, eps the distance from 1 to the next number of their type. Multiples of 1/16 (masks, counts,
exponents, factors of sizes) stay what they are. A difference is explained where neither its maximum (max_rel) nor its root mean
square (SQNR) is beyond the noise's. An exact rewrite is one trial more: it is beyond the largest of n others with a chance of 1
in n + 1. Trials are made until they explain what is asked about, or are far from it, at most ``TRIALS``.

The noise is also what cannot be seen: a wrong rewrite that changes the outputs by less would pass. So both models must agree
piece by piece too (``pieces.py``), wherever they can be taken to pieces; else noise beyond ``LEAST_SQNR_DB`` explains nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from . import evaluate, model
from .contracts import Array, Progress, Session, Silent, TensorSpec
from .dataset import Dataset
from .errors import GraphoptError
from .evaluate import Divergence, Evaluation, Reference
from .model.weights import places
from .pieces import Pieces

TRIALS = 8
LEAST_SQNR_DB = 20.0
"""Outputs that move further than this by rounding alone are not determined by the data."""
_LEAST, _FAR = 3, 10.0  # what is so far beyond the noise of so many trials is beyond that of more
_EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_FLOATS = {ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_STEPS = 4  # a sum of n products is some sqrt(n) roundings off, a few for the layers of most models
_EXACT = 16  # multiples of 1 / 16 are meant as they are: nudged, a size would be another one, and 1 - mask not 0


@dataclass(frozen=True)
class Noise:
    """The largest differences that so many trials showed, by output."""

    trials: int
    outputs: Mapping[str, Divergence]

    def __str__(self) -> str:
        """What was found, in words."""
        own = f"the model's own move by up to {largest(self.outputs):.2g} when inputs and weights change in the last place"
        return f"{own}, too far for their comparison to show anything" if self.is_blinding else own

    @property
    def is_blinding(self) -> bool:
        """Whether rounding alone may move an output so far that any other would pass."""
        return any(divergence.sqnr_db < LEAST_SQNR_DB for divergence in self.outputs.values())

    def explains(self, name: str, found: Divergence) -> bool:
        """Whether an output may be that far from what it was by rounding alone."""
        own = self.outputs.get(name)
        return own is not None and found.max_rel <= own.max_rel and found.sqnr_db >= own.sqnr_db


@dataclass(frozen=True)
class Judged:
    """What is to be said of a difference, and what had to be known for that."""

    found: Evaluation
    problems: list[str]
    """Why it is more than rounding; empty where it is not."""
    noise: Noise | None = None
    pieces: Pieces | None = None

    def __str__(self) -> str:
        """The verdict and its reasons."""
        if not self.problems and self.noise is None:
            return "the outputs agree with the model before"
        change = f" by up to {largest(self.found.outputs):.2g} of their peak"
        if self.problems and self.pieces is None:
            change = f": {'; '.join(self.problems)}"
        return "; ".join([f"the outputs changed{change}", *(str(known) for known in (self.noise, self.pieces) if known)])


class Trials:
    """Trials of one model on its data, made when they are asked for and kept.

    Args:
        path: The model.
        open_: Opens a model where ``reference`` was computed.
        reference: Its outputs on the data.
        data: What to run it on.
        seed: Decides all changes.
        progress: Told each sample.
    """

    def __init__(
        self,
        path: Path,
        open_: Callable[[Path], Session],
        reference: Reference,
        data: Dataset,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._path, self._open, self._reference, self._data = path, open_, reference, data
        self._seed, self._progress = seed, progress or Silent()
        self._made: list[Noise] = []

    def __iter__(self) -> Iterator[Noise]:
        """What is known after one trial, after two, ..."""
        for count in range(1, TRIALS + 1):
            if len(self._made) < count:
                earlier = self._made[-1].outputs if self._made else {}
                self._made.append(Noise(count, _worst(earlier, self._differences((self._seed, count)))))
            yield self._made[count - 1]

    def _differences(self, seed: Sequence[int]) -> Mapping[str, Divergence]:
        """How far one trial is off, where it can be compared."""
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder, self._progress.stage("measuring rounding noise"):
            changed = model.save(nudged(model.load(self._path), seed), Path(folder) / self._path.name, durable=False)
            try:
                with self._open(changed.path) as session:
                    found = evaluate.compare(self._reference, _Nudged(session, seed), self._data, progress=self._progress)
            except GraphoptError:  # the model takes these data only as they were
                return {}
        return {
            name: divergence
            for name, divergence in found.outputs.items()
            if name not in found.mismatches and divergence.equal_nonfinite
        }


def judge(
    found: Evaluation,
    outputs: Sequence[TensorSpec],
    tolerances: Mapping[str, float],
    trials: Iterable[Noise],
    in_pieces: Callable[[], Pieces | None],
) -> Judged:
    """Whether what a rewrite changed is rounding; the last two are asked only where the tolerances do not tell.

    Args:
        found: What comparing its outputs showed.
        outputs: The model's outputs, for their types.
        tolerances: As ``evaluate.problems`` takes them.
        trials: The noise of the model before.
        in_pieces: Compares both piece by piece.
    """
    problems, noise = evaluate.problems(found, outputs, tolerances), None
    if found.mismatches or not all(divergence.equal_nonfinite for divergence in found.outputs.values()):
        return Judged(found, problems)
    for noise in trials if problems else ():
        beyond = {name: divergence for name, divergence in found.outputs.items() if not noise.explains(name, divergence)}
        if not evaluate.problems(replace(found, outputs=beyond), outputs, tolerances):
            pieces = in_pieces()
            if pieces is not None or not noise.is_blinding:
                return Judged(found, pieces.problems if pieces is not None else [], noise, pieces)
            break
        if noise.trials >= _LEAST and largest(beyond) > _FAR * largest(noise.outputs):
            break
    return Judged(found, problems, noise)


def largest(outputs: Mapping[str, Divergence]) -> float:
    """The largest max_rel of any output."""
    return max((divergence.max_rel for divergence in outputs.values()), default=0.0)


def nudged(original: ir.Model, seed: Sequence[int]) -> ir.Model:
    """The model with its weights changed in the last place; each is read when it is asked for."""
    changed = model.clone(original)
    for index, place in enumerate(places(changed)):
        tensor = place.tensor
        if tensor.dtype in _FLOATS:
            moved = partial(_nudged_tensor, tensor, (*seed, index))
            place.put(ir.LazyTensor(moved, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name))
    return changed


def nudge(array: Array, rng: np.random.Generator) -> Array:
    """The array with its floating-point numbers changed in the last place, but for multiples of 1 / 16."""
    if array.dtype.name not in _EPS:
        return array
    exact = array.astype(np.float64)
    steps = rng.uniform(-_STEPS, _STEPS, array.shape)
    moved = exact * (1 + _EPS[array.dtype.name] * steps)
    return np.where(exact * _EXACT == np.rint(exact * _EXACT), exact, moved).astype(array.dtype)


def _nudged_tensor(tensor: ir.TensorProtocol, seed: Sequence[int]) -> ir.TensorProtocol:
    return ir.Tensor(nudge(tensor.numpy(), np.random.default_rng(seed)), dtype=tensor.dtype, name=tensor.name)


class _Nudged(Session):
    """A session whose inputs are changed in the last place."""

    def __init__(self, session: Session, seed: Sequence[int]) -> None:
        self._session, self._rng = session, np.random.default_rng(seed)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return self._session.run({name: nudge(array, self._rng) for name, array in feed.items()})


def _worst(a: Mapping[str, Divergence], b: Mapping[str, Divergence]) -> dict[str, Divergence]:
    """The larger difference of each output, figure by figure."""
    both = {
        name: Divergence(
            max(a[name].max_abs, b[name].max_abs),
            max(a[name].max_rel, b[name].max_rel),
            min(a[name].cosine, b[name].cosine),
            min(a[name].sqnr_db, b[name].sqnr_db),
        )
        for name in a.keys() & b.keys()
    }
    return {**a, **b, **both}
