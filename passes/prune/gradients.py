"""Scores of a group's units by gradients: what a gate on the unit does to a loss, without any weight being changed.

Wherever a layer reads unit c, what it reads is multiplied by a gate g_c = 1; to remove the unit is to make it 0. Then

    L(g_c = 0) - L(g_c = 1)  =  -dL/dg_c + 1/2 d²L/dg_c² - ...

taylor  E_n[(dL_n/dg_c)²], the first term (Molchanov et al. 2017; squared, and with gates, in Molchanov et al. 2019). L_n is the
        cross-entropy of sample n with its label; without labels with the class that the model itself finds likeliest.
obd     1/2 E_n[d²L_n/dg_c²], the second term (LeCun et al. 1990, Optimal Brain Damage, with the diagonal alone). L_n is the
        divergence KL(p || p(g)) of the prediction from the original's. It is 0 at g = 1 and so is its gradient, and its second
        derivative is there, without approximation, the Fisher information (Martens 2020), which needs no labels:

            J^T (diag(p) - p p^T) J  =  E_r[(J^T S r)²] on the diagonal,   S = diag(√p) - p √p^T,   r = ±1 at random

        where J is what the logits do by the gate: one backward pass a sample (Hutchinson 1990). Where the outputs are no scores
        of classes, L_n is half their squared distance from the original's, each in parts of its energy, and S is 1 / |y|.

A unit that many layers read has one gate: its derivatives add up before they are squared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import sizes
from graphopt.axes import Group
from graphopt.contracts import Array, Context, Network, NodeInput
from graphopt.dataset import Batch
from graphopt.errors import UsageError
from graphopt.reconstruct import layers

_BATCH = 16
"""Samples at once, at most: everything that is computed of them is held until the gradient is known."""
_LARGEST_BYTES = 32 << 20
"""Of the largest value of a batch."""


def scores(model: ir.Model, groups: Mapping[str, Group], criterion: str, context: Context, samples: int) -> dict[str, Array]:
    """Scores [size] by name of a group, ``criterion`` being taylor or obd; no entry where no layer that is known reads it.

    Raises:
        MissingError: Torch is not installed.
        ModelError: The model has operators that cannot be differentiated.
        UsageError: ``taylor`` of a model whose output is no scores of classes.
    """
    assert context.data is not None, "the pass says that it needs data"
    network = context.network(model)
    import torch

    read = _read(model, groups)
    named = dict.fromkeys(name for along in read.values() for name, _, _ in along)
    data = context.data.first(samples).batched(1)
    each = max(1, sizes.largest_bytes(model, next(data.batches()).feed))
    data = data.batched(max(1, min(_BATCH, _LARGEST_BYTES // each)))
    separate = _samples_first(network, read, next(data.batches()))
    data = data if separate else data.batched(1)
    found = {name: np.zeros(groups[name].size) for name in named}
    random = torch.Generator().manual_seed(0)
    with context.progress.stage("asking gradients", data.size) as step:
        for batch in data.batches():
            rows = batch.samples if separate else 1
            gates = {name: torch.ones(rows, groups[name].size, requires_grad=True) for name in named}
            outputs = network.run(batch.feed, _gated(read, gates))
            given = [outputs[value] for value in model.graph.outputs if outputs[value].is_floating_point()]
            loss = _taylor(given, batch) if criterion == "taylor" else _damage(given, random)
            slopes = (
                torch.autograd.grad(loss, [*gates.values()], allow_unused=True) if loss.requires_grad else [None] * len(gates)
            )
            for name, slope in zip(gates, slopes, strict=True):
                if slope is not None:
                    found[name] += slope.double().square().sum(0).numpy()
            step(batch.samples)
    return {name: total / data.size * (1.0 if criterion == "taylor" else 0.5) for name, total in found.items()}


_Along = tuple[str, Array, int]
"""A group's name, the unit at each index of an axis of what is read (-1: none), and the axis."""


def _read(model: ir.Model, groups: Mapping[str, Group]) -> dict[NodeInput, list[_Along]]:
    """What layers read of each group."""
    known = layers(model)
    read: dict[NodeInput, list[_Along]] = {}
    for name, group in groups.items():
        for use in group.consumers:
            layer = known.get(use.node)
            if layer is not None and use.value is layer.weight and use.axis == layer.axis:
                axis = -1 if layer.patches is None else 1
                read.setdefault((use.node, 0), []).append((name, np.tile(use.units, layer.groups), axis))
    return read


def _samples_first(network: Network, read: Mapping[NodeInput, Sequence[_Along]], batch: Batch) -> bool:
    """Whether the first axis of all that is read is the samples'; else a gate is given one sample at a time."""
    import torch

    values = {value for node, index in read if (value := node.inputs[index]) is not None}
    with torch.no_grad():
        found = network.run(batch.feed, keep=values)
    return all(found[value].ndim > 1 and len(found[value]) == batch.samples for value in values)


def _gated(read: Mapping[NodeInput, Sequence[_Along]], gates: Mapping[str, Any]) -> dict[NodeInput, Callable[[Any], Any]]:
    """Functions that multiply what is read by the gates [rows, size] of its units."""
    import torch

    def function(along: Sequence[_Along]) -> Callable[[Any], Any]:
        def times(x: Any) -> Any:
            for name, units, axis in along:
                gate = gates[name]
                own = torch.cat([gate, torch.ones(len(gate), 1)], 1)[:, torch.from_numpy(units)]  # -1 is the one at the end
                shape = [1] * x.ndim
                shape[0], shape[axis] = len(own), own.shape[1]
                x = x * own.reshape(shape).to(x.dtype)
            return x

        return times

    return {place: function(along) for place, along in read.items()}


def _logits(outputs: Sequence[Any]) -> Any | None:
    """Scores of classes [N, C], of which the softmax is the prediction; None where the outputs are something else."""
    import torch

    if len(outputs) != 1 or outputs[0].ndim < 2 or outputs[0].shape[1] < 2 or outputs[0][0, 0].numel() != 1:
        return None
    found = outputs[0].reshape(outputs[0].shape[:2])
    sums = found.detach().sum(1)
    if bool((found >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return found.clamp(min=1e-30).log()
    return found


def _taylor(outputs: Sequence[Any], batch: Batch) -> Any:
    import torch

    logits = _logits(outputs)
    if logits is None:
        raise UsageError(
            "taylor needs a loss, and the outputs are no scores of classes [samples, classes]",
            where="criterion",
            hint="Choose obd, which asks how far all outputs move.",
        )
    labels = batch.labels
    known = labels is not None and labels.dtype.kind in "iu" and labels.shape == logits.shape[:1]
    wanted = torch.from_numpy(labels.astype(np.int64)) if known and labels is not None else logits.argmax(1)
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")


def _damage(outputs: Sequence[Any], random: Any) -> Any:
    """A number whose gradient by the gates is J^T S r."""
    import torch

    def signs(like: Any) -> Any:
        return torch.randint(0, 2, like.shape, generator=random).to(like.dtype) * 2 - 1

    logits = _logits(outputs)
    if logits is None:
        parts = [(y * signs(y)).sum() / y.detach().norm().clamp(min=1e-30) for y in outputs]
        return torch.stack(parts).sum()
    p = torch.softmax(logits.detach(), 1)
    one = p.sqrt() * signs(p)
    return (logits * (one - p * one.sum(1, keepdim=True))).sum()
