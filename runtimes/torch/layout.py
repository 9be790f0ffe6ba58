"""Operators that move numbers and compute shapes: gather, slice, pad, reshape, and integers about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .call import Call, Rule, axis_of
from .tensors import Tensor, dtype, from_array, functional, torch


def _reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    wanted = call.numbers("shape", shape)
    assert wanted is not None
    if not call.get("allowzero", 0):
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = axis_of(call, x, 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted = call.numbers("axes", axes)
    return x.squeeze() if wanted is None else x.squeeze(tuple(wanted)) if wanted else x


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted = call.numbers("axes", axes) or []
    for axis in sorted(axis % (x.ndim + len(wanted)) for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def _expand(_call: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape.tolist()))


def _split(call: Call, x: Tensor, split: Tensor | None = None) -> Sequence[Tensor]:
    axis = axis_of(call, x, 0)
    sizes = call.numbers("split", split)
    if sizes is None:
        each = -(-x.shape[axis] // call.get("num_outputs", len(call.node.outputs)))
        return tuple(x.split(each, axis))
    return tuple(x.split(sizes, axis))


def _split_to_sequence(call: Call, x: Tensor, split: Tensor | None = None) -> list[Tensor]:
    axis = axis_of(call, x, 0)
    parts = x.split(1 if split is None else split.item() if split.ndim == 0 else split.tolist(), axis)
    return [part.squeeze(axis) for part in parts] if split is None and not call.get("keepdims", 1) else [*parts]


def _slice(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    starts, ends, axes, steps = (
        call.numbers(name, given[place] if place < len(given) else None)
        for place, name in enumerate(("starts", "ends", "axes", "steps"))
    )
    assert starts is not None
    assert ends is not None
    for place, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = 1 if steps is None else steps[place]
        first, last, step = slice(starts[place], ends[place], step).indices(x.shape[axis])
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(first, last, step),)]
        else:
            x = x.index_select(axis, torch.arange(first, last, step))
    return x


def _pad(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    pads, value, axes = (*given, None, None, None)[:3]
    widths = call.numbers("pads", pads) or call.numbers("paddings") or []
    where = [*range(x.ndim)] if axes is None else [axis % x.ndim for axis in axes.tolist()]
    before = dict(zip(where, widths[: len(where)], strict=True))
    after = dict(zip(where, widths[len(where) :], strict=True))
    mode = call.text("mode", "constant")
    if mode == "constant":
        flat = [side.get(axis, 0) for axis in reversed(range(x.ndim)) for side in (before, after)]
        return functional.pad(x, flat, value=call.get("value", 0.0) if value is None else value.item())
    for axis in where:
        left, right = before[axis], after[axis]
        index = np.arange(x.shape[axis])[max(0, -left) : x.shape[axis] - max(0, -right)]
        index = np.pad(index, (max(0, left), max(0, right)), mode=mode)  # type: ignore[call-overload]  # it refuses other modes itself
        x = x.index_select(axis, torch.from_numpy(index))
    return x


def _gather(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = axis_of(call, x, 0)
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _places(x: Tensor, index: Tensor, axis: int) -> Tensor:
    return torch.where(index < 0, index + x.shape[axis], index).to(torch.int64)


def _gather_elements(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = axis_of(call, x, 0)
    return x.gather(axis, _places(x, index, axis))


def _gather_nd(call: Call, x: Tensor, index: Tensor) -> Tensor:
    batch = call.get("batch_dims", 0)
    grid = torch.meshgrid(*[torch.arange(size) for size in x.shape[:batch]], indexing="ij") if batch else ()
    inner = index.ndim - 1 - batch
    return x[(*(one.reshape(*one.shape, *[1] * inner) for one in grid), *index.to(torch.int64).unbind(-1))]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis, how = axis_of(call, x, 0), call.text("reduction", "none")
    places = _places(x, index, axis)
    return x.scatter(axis, places, updates) if how == "none" else x.scatter_reduce(axis, places, updates, _REDUCTIONS[how])


def _scatter_nd(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    how = call.text("reduction", "none")
    places = tuple(_places(x, one, axis) for axis, one in enumerate(index.unbind(-1)))
    if how in {"none", "add"}:
        return x.index_put(places, updates, accumulate=how == "add")
    strides = [math.prod(x.shape[axis + 1 : len(places)]) for axis in range(len(places))]
    flat = torch.stack([place * stride for place, stride in zip(places, strides, strict=True)]).sum(0).reshape(-1)
    rows = x.reshape(math.prod(x.shape[: len(places)]), -1)
    values = updates.reshape(len(flat), -1)
    return rows.scatter_reduce(0, flat[:, None].expand_as(values), values, _REDUCTIONS[how]).reshape(x.shape)


def _shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int64)[call.get("start", 0) : call.get("end", x.ndim)]


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    if value is None:
        return torch.zeros(shape.tolist())
    return from_array(value.numpy(), value.dtype).reshape(()).repeat(shape.tolist())


def constant(call: Call) -> Tensor:
    """What a Constant node gives."""
    [(name, attribute)] = call.attributes.items()
    if name == "value":
        return from_array(attribute.value.numpy(), attribute.value.dtype)
    if not name.startswith(("value_float", "value_int")):
        call.refuse(f"with {name}")
    return torch.tensor(attribute.value, dtype=torch.float32 if "float" in name else torch.int64)


def _one_hot(call: Call, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size, axis = int(depth), call.get("axis", -1)
    hot = torch.remainder(index.to(torch.int64), size).unsqueeze(-1) == torch.arange(size)
    valid = ((index >= -size) & (index < size)).unsqueeze(-1)
    return torch.where(hot & valid, values[1], values[0]).movedim(-1, axis)


def _range(_call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.text("mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    order = (0, 3, 5, 1, 2, 4) if call.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).permute(order).reshape(n, c * b**2, h // b, w // b)


def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    return (torch.triu if call.get("upper", 1) else torch.tril)(x, 0 if k is None else int(k))


def _eye_like(call: Call, x: Tensor) -> Tensor:
    kind = dtype(call.get("dtype")) if "dtype" in call.attributes else x.dtype
    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])
    return (columns - rows == call.get("k", 0)).to(kind)


def _concat_from_sequence(call: Call, parts: Sequence[Tensor]) -> Tensor:
    join = torch.stack if call.get("new_axis", 0) else torch.cat
    return join([*parts], call.get("axis"))


def _inserted(_call: Call, parts: Sequence[Tensor], one: Tensor, place: Tensor | None = None) -> list[Tensor]:
    found = [*parts]
    found.insert(len(found) if place is None else int(place), one)
    return found


def _condition(call: Call, condition: Tensor) -> Any:
    graph: ir.Graph = call.get("then_branch" if bool(condition) else "else_branch")
    return tuple(call.run(graph, ()))


def _loop(call: Call, trips: Tensor | None, condition: Tensor | None, *state: Tensor) -> Any:
    """Body: (step, condition, state) -> (condition, state, what is gathered)."""
    body: ir.Graph = call.get("body")
    going, step, carried = condition is None or bool(condition), 0, [*state]
    gathered: list[list[Tensor]] = [[] for _ in body.outputs[1 + len(carried) :]]
    while going and (trips is None or step < int(trips)):
        again, *found = call.run(body, [torch.tensor(step), torch.tensor(going), *carried])
        carried, going, step = found[: len(carried)], bool(again), step + 1
        for rows, one in zip(gathered, found[len(carried) :], strict=True):
            rows.append(one)
    if any(not rows for rows in gathered):
        call.refuse("with a body that gathers and never runs")
    return (*carried, *(torch.stack(rows) for rows in gathered))


TABLE: Mapping[str, Rule] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": lambda _call, x, repeats: x.repeat(repeats.tolist()),
    "Transpose": lambda call, x: x.permute(call.get("perm", [*reversed(range(x.ndim))])),
    "Concat": lambda call, *xs: torch.cat(xs, call.get("axis", 1)),
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": lambda _call, x: torch.tensor(x.numel()),
    "Range": _range,
    "Constant": constant,
    "ConstantOfShape": _constant_of_shape,
    "OneHot": _one_hot,
    "NonZero": lambda _call, x: torch.nonzero(x).T,
    "Trilu": _trilu,
    "EyeLike": _eye_like,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "SequenceConstruct": lambda _call, *xs: [*xs],
    "SequenceEmpty": lambda _call: [],
    "SequenceLength": lambda _call, parts: torch.tensor(len(parts)),
    "SequenceAt": lambda _call, parts, place: parts[int(place)],
    "SequenceInsert": _inserted,
    "SplitToSequence": _split_to_sequence,
    "ConcatFromSequence": _concat_from_sequence,
    "If": _condition,
    "Loop": _loop,
}
