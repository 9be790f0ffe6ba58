"""LSTM, GRU and RNN: one step after the other, so that every activation, peephole and length is the same code.

RNN    h = f(x W^T + h R^T + b)
GRU    z, r = f(x W_zr^T + h R_zr^T + b),  n = g(x W_n^T + r (h R_n^T + c) + b)  or  (r h) R_n^T,   h = (1 - z) n + z h
LSTM   i, o, f, c' as the sum of both products,   c = f c + i g(c'),   h = o h(c)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from .call import Call, Rule
from .tensors import Tensor, functional, torch

_Function: TypeAlias = Callable[[Tensor], Tensor]
_Cell: TypeAlias = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]
_FUNCTIONS = frozenset({"sigmoid", "tanh", "relu", "softplus", "softsign"})


def _functions(call: Call, direction: int, default: Sequence[str]) -> list[_Function]:
    names = [name.decode() if isinstance(name, bytes) else name for name in call.get("activations", ())]
    own = names[direction * len(default) : (direction + 1) * len(default)] or default
    if any(name.lower() not in _FUNCTIONS for name in own) or call.get("clip") or call.get("activation_alpha"):
        call.refuse(f"with the activations {', '.join(own)}, a clip, or factors of activations")
    return [getattr(functional, name.lower()) for name in own]


def _rnn(call: Call, direction: int, w: Tensor, r: Tensor, b: Tensor, _p: Tensor | None) -> _Cell:
    [f] = _functions(call, direction, ["Tanh"])
    size = r.shape[-1]

    def cell(x: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
        return [f(x @ w.T + state[0] @ r.T + b[:size] + b[size:])]

    return cell


def _gru(call: Call, direction: int, w: Tensor, r: Tensor, b: Tensor, _p: Tensor | None) -> _Cell:
    f, g = _functions(call, direction, ["Sigmoid", "Tanh"])
    size = r.shape[-1]
    before = call.get("linear_before_reset", 0)
    wide, own = b[: 3 * size], b[3 * size :]

    def cell(x: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
        [h] = state
        given = x @ w.T + wide
        z, reset = f(given[:, : 2 * size] + h @ r[: 2 * size].T + own[: 2 * size]).chunk(2, -1)
        last, shift = r[2 * size :].T, own[2 * size :]
        n = g(given[:, 2 * size :] + (reset * (h @ last + shift) if before else (reset * h) @ last + shift))
        return [(1 - z) * n + z * h]

    return cell


def _lstm(call: Call, direction: int, w: Tensor, r: Tensor, b: Tensor, p: Tensor | None) -> _Cell:
    f, g, last = _functions(call, direction, ["Sigmoid", "Tanh", "Tanh"])
    size = r.shape[-1]
    shift = b[: 4 * size] + b[4 * size :]
    if call.get("input_forget", 0):
        call.refuse("with the input's gate made of the forget gate")
    pi, po, pf = (0, 0, 0) if p is None else p.split(size)

    def cell(x: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
        h, c = state
        i, o, forget, new = (x @ w.T + h @ r.T + shift).chunk(4, -1)
        c_next = f(forget + pf * c) * c + f(i + pi * c) * g(new)
        return [f(o + po * c_next) * last(c_next), c_next]

    return cell


def _recurrent(make: Callable[..., _Cell], gates: int, states: int) -> Rule:
    def rule(call: Call, x: Tensor, w: Tensor, r: Tensor, *rest: Tensor | None) -> Sequence[Tensor]:
        bias, lengths, h, c, peepholes = (*rest, *[None] * 5)[:5]
        initial = [h, c][:states]
        batch_first = bool(call.get("layout", 0))
        x = x.transpose(0, 1) if batch_first else x  # [length, N, features]
        size, directions = r.shape[-1], len(w)
        bias = torch.zeros(directions, 2 * gates * size, dtype=x.dtype) if bias is None else bias
        zero = torch.zeros(directions, x.shape[1], size, dtype=x.dtype)
        given = [zero if one is None else one.transpose(0, 1) if batch_first else one for one in initial]
        outputs, finals = [], []
        for direction in range(directions):
            backward = direction == 1 or call.text("direction", "forward") == "reverse"
            p = None if peepholes is None or states < 2 else peepholes[direction]
            cell = make(call, direction, w[direction], r[direction], bias[direction], p)
            found, last = _unrolled(cell, x, [one[direction] for one in given], lengths, backward)
            outputs.append(found)
            finals.append(last)
        y = torch.stack(outputs, 1)  # [length, directions, N, size]
        ends = [torch.stack(parts) for parts in zip(*finals, strict=True)]
        if batch_first:
            return y.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in ends)
        return y, *ends

    return rule


def _unrolled(
    cell: _Cell, x: Tensor, state: Sequence[Tensor], lengths: Tensor | None, backward: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """Outputs [length, N, size] and the last state; behind the end of a sample its outputs are 0 and its state stays."""
    found: list[Tensor] = [None] * len(x)
    for step in reversed(range(len(x))) if backward else range(len(x)):
        new = cell(x[step], state)
        if lengths is None:
            state, found[step] = new, new[0]
            continue
        going = (step < lengths)[:, None]
        state = [torch.where(going, now, old) for now, old in zip(new, state, strict=True)]
        found[step] = torch.where(going, new[0], torch.zeros_like(new[0]))
    return torch.stack(found), state


TABLE: Mapping[str, Rule] = {
    "RNN": _recurrent(_rnn, 1, 1),
    "GRU": _recurrent(_gru, 3, 1),
    "LSTM": _recurrent(_lstm, 4, 2),
}
