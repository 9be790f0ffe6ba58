"""QuantizeLinear and DequantizeLinear with a straight-through gradient (Bengio et al. 2013; Jacob et al. 2018).

    q = clip(round(x / s) + z),   dq/dx := 1/s within the range, 0 beyond

Where a gradient is wanted the numbers stay floats that are whole: integers have none.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from .call import Call, Rule, axis_of
from .tensors import Tensor, dtype, torch

_SMALL = {ir.DataType.INT4: (-8, 7), ir.DataType.UINT4: (0, 15)}


def _along(call: Call, numbers: Tensor, x: Tensor) -> Tensor:
    """Scales or zero points, to broadcast against ``x``: one, one for each index of an axis, or for each block of them."""
    block = call.get("block_size", 0)
    if block:
        axis = axis_of(call, x, 1)
        return numbers.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if numbers.ndim == 0 or numbers.numel() == 1:
        return numbers.reshape(())
    return numbers.reshape([-1 if axis == axis_of(call, x, 1) else 1 for axis in range(x.ndim)])


def _quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    given = call.node.inputs[2] if len(call.node.inputs) > 2 else None
    kind = ir.DataType(call.get("output_dtype", 0) or ir.DataType.UINT8)
    if given is not None and given.dtype is not None:
        kind = given.dtype
    own = dtype(kind) if zero is None else zero.dtype
    low, high = _SMALL.get(kind) or (torch.iinfo(own).min, torch.iinfo(own).max)
    whole = x / _along(call, scale, x)
    whole = whole + (whole.round() - whole).detach()
    found = (whole if zero is None else whole + _along(call, zero, x)).clamp(low, high)
    return found if found.requires_grad else found.to(own)


def _dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    scale = _along(call, scale, x)
    shifted = x.to(scale.dtype) if x.dtype != torch.int32 else x.double()
    shifted = shifted if zero is None else shifted - _along(call, zero, x)
    return shifted.to(scale.dtype) * scale


TABLE: Mapping[str, Rule] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "com.microsoft.QuantizeLinear": _quantize,
    "com.microsoft.DequantizeLinear": _dequantize,
}
