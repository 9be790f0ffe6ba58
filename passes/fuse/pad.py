"""Let an operator that pads by itself do the padding before it.

    Conv(Pad(x, p, 0), pads=q)                         ->   Conv(x, pads=p + q)
    AveragePool(Pad(x, p, 0), pads=q, include pads)    ->   AveragePool(x, pads=p + q, include pads)
    AveragePool(Pad(x, p, 0))                          ->   AveragePool(x, pads=p, include pads)
    MaxPool(Pad(x, p, -inf), pads=q)                   ->   MaxPool(x, pads=p + q)

A Conv takes padding for zeros; a MaxPool for minus infinity, so zeros in front of one must stay; an AveragePool leaves padding
out of its mean unless count_include_pad is set, which it may be where it has none of its own. Conditions: a constant Pad of
spatial axes only, by nothing negative, known ahead of time; for pools, less than a window on each side (the runtime asks for
it) and no ceil_mode, which counts windows otherwise. A Pad that several read is moved into all of them or none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import is_overridable, site
from graphopt.shapes import is_known

from .graph import Work, attribute, declined, ints, number

_USERS = ("Conv", "AveragePool", "MaxPool")
_INPUTS_OPSET = 11


@dataclass(frozen=True)
class _Moved:
    node: ir.Node
    pads: tuple[int, ...]


def fold_pad(work: Work, pad: ir.Node) -> Change | None:
    """Move a Pad into the operators that read it."""
    uses = pad.outputs[0].uses()
    users = [use.node for use in uses]
    if not users or any(use.idx != 0 or not work.is_operator(use.node, *_USERS) for use in uses):
        return None
    what = f"moved Pad into {' and '.join(dict.fromkeys(user.op_type for user in users))}"
    found = _movable(work, pad)
    moved = [found if isinstance(found, str) else _absorb(user, *found) for user in users]
    why = next((one for one in moved if isinstance(one, str)), None)
    if why is not None:
        return declined(pad, what, why)
    for one in moved:
        assert isinstance(one, _Moved)
        one.node.attributes["pads"] = ir.AttrInt64s("pads", one.pads)
        one.node.attributes.pop("auto_pad", None)
        if one.node.op_type == "AveragePool":
            one.node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        one.node.replace_input_with(0, pad.inputs[0])
    work.tells_more |= not is_known(work.facts.get(pad.outputs[0]))  # behind a Pad, inference knows no batch of any size
    done = Change(site(pad), what, "these operators pad by themselves")
    work.remove_dead(pad)
    return done


def _movable(work: Work, pad: ir.Node) -> tuple[tuple[int, ...], float] | str:
    """How much is padded, spatial axes only, begins first, and with what; a text says why the Pad must stay."""
    over = next((value for value in pad.inputs[1:] if is_overridable(value)), None)
    amounts, fill = _amounts(work, pad), _fill(work, pad)
    why = ""
    if pad.outputs[0].is_graph_output() or any(use.node.graph is not pad.graph for use in pad.outputs[0].uses()):
        why = "the padded tensor is an output, or a subgraph reads it"
    elif attribute(pad, "mode", "constant") != "constant":
        why = f"it pads by {attribute(pad, 'mode')}, which no operator does by itself"
    elif over is not None:
        why = f"{over.name!r} is an input of the model too: a caller may override it"
    elif amounts is None or fill is None:
        why = "how much it pads, or with what, is only known when the model runs"
    if why or amounts is None or fill is None:
        return why
    rank = len(amounts) // 2
    if min(amounts) < 0 or any(amounts[axis] or amounts[axis + rank] for axis in (0, 1)):
        return "it pads by a negative amount, or pads batch or channels"
    return (*amounts[2:rank], *amounts[rank + 2 :]), fill


def _amounts(work: Work, pad: ir.Node) -> list[int] | None:
    """How much is padded: begins of all axes, then ends."""
    if work.opset < _INPUTS_OPSET:
        given = attribute(pad, "pads")
        return [*given] if isinstance(given, tuple) and len(given) > 4 else None
    amounts = ints(pad.inputs[1]) if len(pad.inputs) > 1 else None
    if amounts is None:
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        axes, rank = ints(pad.inputs[3]), work.rank(pad.inputs[0])
        if axes is None or rank is None or len(amounts) != 2 * len(axes):
            return None
        full = [0] * (2 * rank)
        for place, axis in enumerate(axes):
            full[axis % rank] = amounts[place]
            full[axis % rank + rank] = amounts[place + len(axes)]
        amounts = full
    return amounts if len(amounts) > 4 and len(amounts) % 2 == 0 else None


def _fill(work: Work, pad: ir.Node) -> float | None:
    """What it pads with."""
    if work.opset < _INPUTS_OPSET:
        value = attribute(pad, "value", 0.0)
        return value if isinstance(value, float) else None
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return 0.0
    return number(pad.inputs[2])


def _absorb(user: ir.Node, amounts: tuple[int, ...], fill: float) -> _Moved | str:
    """What an operator would pad by itself; a text says why it cannot."""
    auto = attribute(user, "auto_pad", "NOTSET")
    own = (0,) * len(amounts) if auto == "VALID" else attribute(user, "pads", (0,) * len(amounts))
    if auto not in {"NOTSET", "VALID"}:
        return f"the {user.op_type} chooses its own padding ({auto})"
    if not isinstance(own, tuple) or len(own) != len(amounts):
        return f"the {user.op_type} has another rank"
    takes = -np.inf if user.op_type == "MaxPool" else 0.0
    if fill != takes:
        return f"it pads with {fill:g}, and {user.op_type} with {'minus infinity' if np.isinf(takes) else 'zeros'}"
    moved = _Moved(user, tuple(a + b for a, b in zip(amounts, own, strict=True)))
    why = None if user.op_type == "Conv" else _not_in_pool(user, moved.pads, padded=any(own))
    return moved if why is None else why


def _not_in_pool(pool: ir.Node, pads: tuple[int, ...], *, padded: bool) -> str | None:
    """Why a pool cannot pad that much by itself; ``padded`` tells whether it pads now."""
    kernel, dilations = attribute(pool, "kernel_shape"), attribute(pool, "dilations", ())
    if not isinstance(kernel, tuple) or any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        return "the padding is as wide as the window of the pool"
    if attribute(pool, "ceil_mode", 0) or len(pool.outputs) > 1:
        return "the pool rounds up, or gives the places of its maxima"
    if not isinstance(dilations, tuple) or any(dilation != 1 for dilation in dilations):
        return "the pool is dilated"
    if pool.op_type == "AveragePool" and padded and not attribute(pool, "count_include_pad", 0):
        return "the AveragePool pads too, and leaves that out of its mean"
    return None
