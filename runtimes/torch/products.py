"""Matrix products and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .call import Call, Rule
from .elementwise import TABLE as ELEMENTWISE
from .tensors import Tensor, torch
from .windows import TABLE as WINDOWS

_KNOWN = frozenset(
    ["is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"]
)
"""Attributes of Attention that are seen to."""


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    product = (a.T if call.get("transA", 0) else a) @ (b.T if call.get("transB", 0) else b)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    product = product if alpha == 1 else (alpha * product).to(product.dtype)
    return product if c is None else product + (c if beta == 1 else (beta * c).to(c.dtype))


def _fused_product(call: Call, a: Tensor, b: Tensor) -> Tensor:
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        call.refuse("with batches that are transposed")
    a, b = (one.mT if call.get(name, 0) else one for one, name in ((a, "transA"), (b, "transB")))
    return call.get("alpha", 1.0) * (a @ b)


def _fused(rule: Rule) -> Rule:
    """An operator and the activation behind it."""

    def both(call: Call, *inputs: Tensor | None) -> Tensor:
        name, parameters = call.text("activation"), call.get("activation_params", [])
        found = rule(call, *inputs[:3])
        found = found if len(inputs) < 4 or inputs[3] is None else found + inputs[3]
        if name == "Clip":
            return found.clamp(*parameters)
        if parameters:
            call.refuse(f"with {name}({', '.join(map(str, parameters))}) behind it")
        return ELEMENTWISE[name](call, found) if name else found

    return both


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, past: int | None, scale: float | None) -> Tensor:
    """softmax(scale q k^T + mask) v of [N, heads, length, size]; few heads of k and v each serve several of q's.

    ``past``: each query sees so many keys, and one for each query up to itself; None: all.
    """
    if q.shape[1] != k.shape[1]:
        each = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if past is not None:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(past)
        scores = scores.masked_fill(~seen, -math.inf)
    return torch.softmax(scores, -1) @ v


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2) if x.ndim == 3 else x


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _attention(call: Call, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None) -> Sequence[Tensor | None]:
    """ONNX's own; what was before is put in front of keys and values."""
    mask, before_k, before_v, lengths = (*rest, None, None, None, None)[:4]
    others = {*call.attributes} - _KNOWN
    if lengths is not None or len(call.node.outputs) > 3 or call.get("softcap", 0.0) or others:
        call.refuse("with lengths, a cap, a window, or scores as an output")
    flat = q.ndim == 3
    q, k, v = (_heads(one, call.get(name, 1)) for one, name in ((q, "q_num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads")))
    k = k if before_k is None else torch.cat([before_k, k], 2)
    v = v if before_v is None else torch.cat([before_v, v], 2)
    past = 0 if before_k is None else before_k.shape[2]
    found = _attend(q, k, v, mask, past if call.get("is_causal", 0) else None, call.get("scale"))
    return (_joined(found) if flat else found), k, v


def _multi_head(call: Call, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None) -> Tensor:
    """onnxruntime's: [N, length, heads x size], with a bias of all three, and a sum to the scores."""
    bias, masked, added, *past = (*rest, None, None, None)
    if masked is not None or any(one is not None for one in past) or len(call.node.outputs) > 1:
        call.refuse("with a mask of keys or a past")
    count = call.get("num_heads")
    if bias is not None and q.ndim == 3:
        q, k, v = q + bias[: q.shape[-1]], k + bias[q.shape[-1] : q.shape[-1] + k.shape[-1]], v + bias[-v.shape[-1] :]
    heads = (_heads(q, count), _heads(k, count), _heads(v, count))
    past_length = 0 if call.get("unidirectional", 0) else None
    return _joined(_attend(*heads, added, past_length, call.get("scale", 0.0) or None))


def _packed(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Tensor | None) -> Tensor:
    """onnxruntime's: one input times three weights."""
    masked, past, added, *others = (*rest, None, None, None)
    if masked is not None or past is not None or any(one is not None for one in others) or len(call.node.outputs) > 1:
        call.refuse("with a mask of keys or a past")
    count, product = call.get("num_heads"), x @ weight
    sizes = call.get("qkv_hidden_sizes", [weight.shape[1] // 3] * 3)
    parts = (product if bias is None else product + bias).split([*sizes], -1)
    q, k, v = (_heads(part, count) for part in parts)
    return _joined(_attend(q, k, v, added, 0 if call.get("unidirectional", 0) else None, call.get("scale", 0.0) or None))


def _rotated(call: Call, x: Tensor, places: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of elements turned by an angle; [N, heads, length, size] or [N, length, heads x size]."""
    flat = x.ndim == 3
    count = call.get("num_heads", 0) or (x.shape[-1] // (2 * cos.shape[-1]) if flat else 1)
    heads = _heads(x, count)
    if places is not None:
        if places.numel() == 1 and heads.shape[2] != 1:
            places = places.reshape(1, 1) + torch.arange(heads.shape[2])
        cos, sin = cos[places], sin[places]
    size = call.get("rotary_embedding_dim", 0) or heads.shape[-1]
    cos, sin = (one[..., : size // 2].unsqueeze(1) for one in (cos, sin))
    turned, rest = heads[..., :size], heads[..., size:]
    if call.get("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        found = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        found = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    found = torch.cat([found, rest], -1)
    return _joined(found) if flat else found


TABLE: Mapping[str, Rule] = {
    "MatMul": lambda _call, a, b: torch.matmul(a, b),
    "Gemm": _gemm,
    "Einsum": lambda call, *xs: torch.einsum(call.text("equation"), *xs),
    "Attention": _attention,
    "RotaryEmbedding": lambda call, x, cos, sin, places=None: _rotated(call, x, places, cos, sin),
    "com.microsoft.FusedConv": _fused(WINDOWS["Conv"]),
    "com.microsoft.FusedGemm": _fused(_gemm),
    "com.microsoft.FusedMatMul": _fused_product,
    "com.microsoft.MultiHeadAttention": _multi_head,
    "com.microsoft.Attention": _packed,
    "com.microsoft.RotaryEmbedding": _rotated,
}
