"""What brings a quantized model's outputs nearer to the float model's without changing its speed; each only where it is a gain.

    rounding      weights to the integers that change a layer's output least, in place of the nearest ones (``rounding.py``)
    correction    biases so that the mean of every channel is what it was (``correct.py``)

``auto`` is decided with every operator quantized: learned on the first half of the samples, measured on the other half as the
error of the outputs, |y - y'|^2 / |y|^2 (``fake.divergence``). What gains less than ``LEAST_GAIN`` is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Change, Context
from graphopt.errors import ModelError
from graphopt.observe.gram import Gram, patches

from . import fake, rounding
from .scheme import Parameters

LEAST_GAIN = 0.1
"""dB."""
_ROWS = 128
"""Positions of a sample that a Gram matrix is summed over."""
_GRAM_BYTES = 48 << 20
"""Gram matrices that are observed at a time; a weight with a larger one is rounded to nearest."""


@dataclass(frozen=True)
class Choices:
    """What is done."""

    rounding: bool = False
    correction: bool = False


@dataclass(frozen=True)
class Weight:
    """A weight to be rounded: float32, in the layout of ``node``; ``axis`` has the output's channels."""

    name: str
    node: ir.Node
    array: Array
    axis: int
    parameters: Parameters


def decide(
    model: ir.Model,
    rounds: Literal["auto", "nearest", "adaround"],
    corrects: Literal["auto", "on", "off"],
    quantize: Callable[[ir.Model, Choices], object],
    context: Context,
    samples: int,
) -> tuple[Choices, list[Change]]:
    """Choose what gains on the data, one after the other, and say by how much; what the options fix is not measured."""
    chosen = Choices(rounds == "adaround", corrects == "on")
    trials = {"rounding": rounds == "auto", "correction": corrects == "auto"}
    if context.data is None or not any(trials.values()):
        return chosen, []
    half = held_out(context, samples)
    changes: list[Change] = []

    def measured(choices: Choices) -> float:
        clone = model.clone()
        quantize(clone, choices)
        with context.open_session(model) as reference, context.open_session(clone) as candidate:
            assert context.data is not None
            return fake.decibels(fake.divergence(reference, candidate, context.data, half, samples))

    before = measured(chosen)
    for kind in (kind for kind, wanted in trials.items() if wanted):
        trial = replace(chosen, **{kind: True})
        try:
            after = measured(trial)
        except ModelError as error:  # the runtime does not take a part of the model, or a value is not finite
            changes.append(Change("model", f"not: {_WHAT[kind]}", str(error), done=False))
            continue
        gains = after >= before + LEAST_GAIN
        what = _WHAT[kind] if gains else f"not: {_WHAT[kind]}"
        changes.append(Change("model", what, f"signal to noise of the outputs {before:.2f} -> {after:.2f} dB", gains))
        if gains:
            chosen, before = trial, after
    return chosen, changes


_WHAT = {
    "rounding": "weights rounded so that each layer's output changes least (AdaRound)",
    "correction": "biases corrected by the mean error of each channel",
}


def held_out(context: Context, samples: int) -> int:
    """How many samples are for learning; the rest of ``samples`` is for measuring."""
    assert context.data is not None
    return max(1, min(samples, context.data.size) // 2)


def learn(model: ir.Model, weights: Sequence[Weight], context: Context, samples: int) -> dict[str, Array]:
    """Integers for weights, by name, in the layout and type of each; those that cannot be learned are left out."""
    found: dict[str, Array] = {}
    with context.progress.stage("rounding weights", total=len(weights)) as step:
        for part in _parts([weight for weight in weights if _can_learn(weight)]):
            wanted: dict[str, list[Gram]] = {}
            for weight in part:
                wanted.setdefault(_input(weight), []).append(_gram(weight))
            grams = context.observe(model, wanted, samples=samples)
            for weight in part:
                gram = grams[_input(weight)][wanted[_input(weight)].index(_gram(weight))]
                made = weight.parameters
                rows = np.moveaxis(weight.array, weight.axis, 0)
                learned = rounding.learn(
                    rows, made.scale.reshape(-1), made.zero_point.reshape(-1), (made.low, made.high), gram.products / gram.count
                )
                found[weight.name] = np.moveaxis(learned.integers, 0, weight.axis).astype(made.dtype.numpy())
                step(1)
    return found


def _input(weight: Weight) -> str:
    value = weight.node.inputs[0]
    assert value is not None
    return value.name or ""


def _gram(weight: Weight) -> Gram:
    return Gram(patches(weight.node) if weight.node.op_type == "Conv" else None, _ROWS)


def _gram_bytes(weight: Weight) -> int:
    groups = int(weight.node.attributes.get_int("group", 1))
    size: int = weight.array.size // weight.array.shape[weight.axis]
    return 8 * groups * size * size


def _can_learn(weight: Weight) -> bool:
    node = weight.node
    plain = node.op_type == "Conv" or (weight.array.ndim == 2 and not node.attributes.get_int("transA", 0))
    return plain and node.op_type != "ConvTranspose" and _gram_bytes(weight) <= _GRAM_BYTES


def _parts(weights: Sequence[Weight]) -> Iterator[list[Weight]]:
    """Weights in their order, as many at a time as Gram matrices fit."""
    part: list[Weight] = []
    size = 0
    for weight in weights:
        if part and size + _gram_bytes(weight) > _GRAM_BYTES:
            yield part
            part, size = [], 0
        part.append(weight)
        size += _gram_bytes(weight)
    if part:
        yield part
