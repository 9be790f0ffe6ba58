"""``fuse``: several operators become one that computes the same, in ONNX's standard operators. One module a rule or a few.

affine      BatchNormalization and arithmetic behind Conv, ConvTranspose, Gemm, MatMul go into their weights
before      and before Conv and Gemm
neutral     arithmetic that changes nothing goes
pad         operators that pad by themselves take over the Pad before them
clip        limits are merged
gemm        MatMul and Add become Gemm, which transposes by itself
pool        a mean over height and width is a GlobalAveragePool
normalize   a LayerNormalization or an RMSNormalization written out
activation  Gelu, HardSwish and HardSigmoid written out
whole       what the runtime has a kernel for keeps its end
enlarge     a Conv of 1 x 1 goes before the Resize that it can change places with
linear      and into the MatMul before it
residual    an Add that the runtime would fuse to its disadvantage
state       an initial state of zeros is left out
order       the runtime computes first what is written last
sequence    tensors are taken apart without a sequence
contrib     onnxruntime's own operators, if the user asks for them
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
from pydantic import Field

from graphopt.contracts import Change, Context, Pass, PassOptions
from graphopt.garbage import collected_later
from graphopt.shapes import infer, keep, kept

from .activation import use_gelu, use_hard_swish
from .affine import fold_affine
from .before import fold_affine_before
from .clip import merge_limits
from .contrib import use_contrib
from .enlarge import multiply_before_enlarging
from .gemm import transpose_in_gemm, use_gemm
from .graph import Rule, Work
from .linear import merge_linear_maps
from .neutral import remove_neutral
from .normalize import use_layer_normalization, use_rms_normalization
from .order import write_values_last
from .pad import fold_pad
from .pool import use_global_pool
from .residual import keep_residual_apart
from .sequence import split_without_sequence
from .state import drop_zero_state

__all__ = ["Fuse", "FuseOptions"]

_SWEEPS = 20
_LISTED = 3
"""So many places that were left alone for the same reason are listed one by one."""

_CONSTANT = frozenset({"", "Constant"})
"""What gives a constant: no operator for an initializer."""
_AFFINE = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub"})
_ANY: frozenset[str] = frozenset()
_RULES: Mapping[str, Mapping[Rule, frozenset[str]]] = {
    "Add": {
        remove_neutral: _CONSTANT,
        fold_affine: _CONSTANT,
        use_layer_normalization: frozenset({"LayerNormalization"}),
        use_gemm: frozenset({"MatMul"}),
    },
    "BatchNormalization": {fold_affine: _ANY},
    "Clip": {merge_limits: frozenset({"Clip", "Relu"})},
    "Conv": {
        fold_affine_before: _AFFINE,
        multiply_before_enlarging: frozenset({"Concat", "Resize", "Upsample"}),
        merge_linear_maps: frozenset({"Reshape"}),
    },
    "Div": {remove_neutral: _CONSTANT, use_hard_swish: _CONSTANT, fold_affine: _CONSTANT},
    "Gemm": {transpose_in_gemm: frozenset({"Transpose"}), fold_affine_before: _AFFINE},
    "GRU": {drop_zero_state: _ANY},
    "LayerNormalization": {keep_residual_apart: frozenset({"Add"})},
    "LSTM": {drop_zero_state: _ANY},
    "Min": {merge_limits: frozenset({"Max"})},
    "Mul": {
        remove_neutral: _CONSTANT,
        use_gelu: _CONSTANT | {"Div", "Mul"},
        use_hard_swish: _CONSTANT | {"Div", "HardSigmoid", "Mul"},
        fold_affine: _CONSTANT,
        use_layer_normalization: frozenset({"Div", "Mul"}),
        use_rms_normalization: frozenset({"Div", "Mul"}),
    },
    "Pad": {fold_pad: _ANY},
    "ReduceMean": {use_global_pool: _ANY},
    "Relu": {merge_limits: frozenset({"Clip", "Relu"})},
    "RNN": {drop_zero_state: _ANY},
    "SplitToSequence": {split_without_sequence: _ANY},
    "Sub": {remove_neutral: _CONSTANT, fold_affine: _CONSTANT},
}
"""The rules by the last operator of what they look for, in the order in which they are tried, each with the operators of which
one must give an input of that: most places are told apart by that alone."""


class FuseOptions(PassOptions):
    """What ``fuse`` may use."""

    contrib: bool = Field(
        False, description="use onnxruntime's own operators (com.microsoft) where they are faster on the target"
    )


class Fuse(Pass):
    """Fusion in standard operators. ``passes/fuse`` has a module for each rule."""

    name = "fuse"
    summary = "fold normalization, arithmetic and padding into weights, and use one operator for what several compute"
    settles = True
    Options = FuseOptions
    options: FuseOptions

    @collected_later()
    def apply(self, model: ir.Model, context: Context) -> Sequence[Change]:
        """Apply the rules until none of them changes anything; last come the places that were left alone, and why.

        The main graph and its subgraphs are covered; bodies of functions are not, their values have no one shape. The bytes of
        all weights grow by at most ``context.growth_bytes``, or 1 MB or 5 % if that is None.
        """
        target, before = context.target, kept(model)
        work = Work(model, context.exclude, infer(model), context.growth_bytes, target.slow_kernels, target.runtime)
        changes: list[Change] = []
        left: dict[ir.Node, Change] = {}
        for _ in range(_SWEEPS):
            left, work.quiet = {}, 0
            done = [change for node in _nodes(work) for change in _rewrite(work, node, left)]
            changes += done
            if len(done) > work.quiet:
                continue
            if not work.tells_more:
                break
            work.facts, work.tells_more = infer(model, work.facts), False
        work.drop_needed()
        changes += write_values_last(work)
        if not work.tells_more:
            keep(model, work.facts, None if changes else before)
        if self.options.contrib:
            changes += use_contrib(model, context)
        return [*changes, *_left_alone(left)]


def _nodes(work: Work) -> Iterator[ir.Node]:
    """The nodes that some rule looks at, each before what reads it; nodes may be removed on the way."""
    for graph in work.graphs:
        for node in graph:
            if node.op_type in _RULES and work.is_operator(node, node.op_type):
                yield node


def _rewrite(work: Work, node: ir.Node, left: dict[ir.Node, Change]) -> Iterator[Change]:
    """Try the rules for one node, until it is gone or none of them applies."""
    behind = _producers(node)
    for rule, needed in _RULES[node.op_type].items():
        if needed and needed.isdisjoint(behind):
            continue
        change = rule(work, node)
        if change is None:
            continue
        if not change.done:
            left[node] = change
            continue
        yield change
        if node.graph is None:
            return
        behind = _producers(node)


def _producers(node: ir.Node) -> set[str]:
    """The operators that give the inputs of a node."""
    return {"" if value is None or (made := value.producer()) is None else made.op_type for value in node.inputs}


def _left_alone(left: Mapping[ir.Node, Change]) -> list[Change]:
    """The patterns that were found and not fused; where many have one reason, they share a line."""
    reasons: dict[tuple[str, str], list[Change]] = {}
    for node, change in left.items():
        if node.graph is not None:
            reasons.setdefault((change.what, change.why), []).append(change)
    changes = []
    for (what, why), group in reasons.items():
        if len(group) > _LISTED:
            changes.append(Change(group[0].site, f"not {what}, here and at {len(group) - 1} other places", why, done=False))
        else:
            changes += [Change(change.site, f"not {what}", why, done=False) for change in group]
    return changes
