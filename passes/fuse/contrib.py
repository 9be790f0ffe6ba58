"""Use onnxruntime's own operators (domain ``com.microsoft``) where they pay on the target; only when the user asks for it.

    norms       SkipLayerNormalization, SkipSimplifiedLayerNormalization   of x + skip, then Layer- or RMSNormalization
    attention   MultiHeadAttention   of heads split, softmax(scale q k^T + mask) v, heads joined
                RotaryEmbedding      of x cos + rotated(x) sin
    packed      Attention            the same, with one input times three weights before; tried whether or not those pay
    gelu        BiasGelu, FastGelu   of Gelu(x + bias), and of Gelu by tanh

Which of them is faster differs from model to model, and with the length of a sequence. So a group is applied to a clone, which
must be valid, have the same signature, give the same outputs on the data, and beat the model without it in interleaved timing
on the target. Otherwise it is left out, and the report says why.

The patterns are onnxscript's (``rewriter.ort_fusions``), imported here and nowhere else. What they take for granted is seen to
before: values state what is known of their shapes, two dimensions of which nothing is known are not equal, and an initializer
that a caller may override is no constant. Its rules for GroupQueryAttention are left out: they drop the attention mask,
assuming that it masks nothing.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt import evaluate, timing
from graphopt.contracts import Array, Change, Context, Session
from graphopt.errors import ModelError, UsageError
from graphopt.graphs import is_overridable, site
from graphopt.model import check, clone, input_specs, output_specs
from graphopt.shapes import defined, infer

if TYPE_CHECKING:
    from onnxscript.rewriter import RewriteRuleSet

DOMAIN = "com.microsoft"
GROUPS = ("norms", "attention", "packed", "gelu")
_RUNTIME = "onnxruntime"
_BETWEEN_RULES = "ai.onnxruntime._fusion"
"""The domain of what onnxscript's rules hand to each other."""
_SAMPLES = 4
_SECONDS = 6.0
"""Of timing, for each group."""
LEAST_GAIN = 1.01
"""The lower end of the speed-up's interval must reach this."""


def use_contrib(model: ir.Model, context: Context) -> list[Change]:
    """Apply the groups that pay to ``model``; the others are named with the reason.

    Raises:
        UsageError: The target's runtime does not have these operators.
    """
    if context.target.runtime != _RUNTIME:
        raise UsageError(
            f"the target {context.target.name!r} runs models with {context.target.runtime}, which does not have the operators"
            f" of {DOMAIN}",
            where="fuse.contrib",
            hint="Leave --contrib away, or choose a target of onnxruntime ('graphopt targets').",
        )
    if context.data is None:
        why = "whether they pay cannot be measured (--verify off --timing off)"
        return [Change("fuse.contrib", f"no operators of {DOMAIN}", why, done=False)]
    changes: list[Change] = []
    current: _Lasting | None = None
    try:
        for group in GROUPS:
            candidate = clone(model)
            made = apply_group(candidate, group)
            if not made:
                continue
            counted = ", ".join(f"{count} {op_type}" for op_type, count in sorted(Counter(made.values()).items()))
            current = current or _Lasting(context.open_session(model))
            better, why = _better(model, candidate, current, context)
            if better is None:
                changes.append(Change(group, f"not used {counted}", why, done=False))
                continue
            apply_group(model, group)
            changes += [Change(name, f"used {DOMAIN}.{op_type}", why) for name, op_type in made.items()]
            current.end()
            current = better
    finally:
        if current is not None:
            current.end()
    return changes


# ------------------------------------------------------------------------------------------------------------- rewriting


def apply_group(model: ir.Model, group: str) -> dict[str, str]:
    """Rewrite ``model`` in place by the rules of a group; returns the sites of the operators made, each with its type.

    If it returns none, the model may have changed without any gain, and is to be thrown away.
    """
    from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

    names = {node: node.name for node in _nodes(model)}
    _state_shapes(model)
    with _overridable_hidden(model):
        found = sum(rules.apply_to_model(model) for rules in _rules(group))
        if not found:
            return {}
        _written_out(names).apply_to_model(model)
        InlinePass(criteria=lambda function: function.domain == _BETWEEN_RULES)(model)
        RemoveUnusedNodesPass()(model)
    for node, name in names.items():
        node.name = name  # the nameless ones have been given names
    for key in [key for key in model.functions if key[0] == _BETWEEN_RULES]:
        del model.functions[key]
    for imports in (model.opset_imports, model.graph.opset_imports):
        imports.pop(_BETWEEN_RULES, None)
    made = [node for node in _nodes(model) if node.domain == DOMAIN and node not in names]
    if group == "packed" and all(node.op_type != "Attention" for node in made):
        return {}  # no more than what "attention" makes
    if made:
        model.opset_imports.setdefault(DOMAIN, 1)
    return {site(node): node.op_type for node in made}


def _rules(group: str) -> Sequence[RewriteRuleSet]:
    """The rules of a group, in the order in which each helps the next."""
    from onnxscript.rewriter.ort_fusions import attention as packed
    from onnxscript.rewriter.ort_fusions import bias_gelu, cos_sin_cache, gelu, mha, mha_bias, mha_scale, sdpa, sdpa_via_mha
    from onnxscript.rewriter.ort_fusions import rms_normalization as rms
    from onnxscript.rewriter.ort_fusions import rotary_embedding as rotary
    from onnxscript.rewriter.ort_fusions import skip_normalization as skip

    heads = (
        rotary.rotary_embedding_rules,
        cos_sin_cache.cos_sin_cache_rules,
        rotary.partial_embedding_rules,
        sdpa.sdpa_rules,
        mha.mha_rules_with_past,
        mha.mha_rules_no_past,
        mha_scale._mha_scale_rules,
        mha_bias.mha_bias_rules,
    )
    rules: dict[str, Sequence[RewriteRuleSet]] = {
        "norms": (rms.rms_normalization_ruleset, skip.skip_rms_normalization_ruleset, skip.skip_layer_normalization_ruleset),
        "attention": (*heads, sdpa_via_mha._rules),
        "packed": (*heads, packed.attention_rules, sdpa_via_mha._rules),
        "gelu": (gelu.gelu_rules, bias_gelu.bias_gelu_rules, _fast_gelu()),
    }
    return rules[group]


def _fast_gelu() -> RewriteRuleSet:
    """Gelu(x, approximate = "tanh") -> FastGelu(x), which ``ort_fusions`` knows only as it is written out."""
    from onnxscript.rewriter import RewriteRuleSet, pattern

    def before(op: Any, x: Any) -> Any:
        return op.Gelu(x, approximate="tanh")

    def after(op: Any, x: Any) -> Any:
        return op.FastGelu(x, _domain=DOMAIN)

    return RewriteRuleSet([pattern.RewriteRule(before, after)])


def _written_out(old: Collection[ir.Node]) -> RewriteRuleSet:
    """Write out each SimplifiedLayerNormalization that the rules made and found no skip connection for.

    onnxruntime has that operator in ONNX's own domain, by mistake: ONNX's checker would refuse the model. Written like this,
    onnxruntime makes it again when it loads the model.
    """
    from onnxscript.rewriter import RewriteRuleSet, pattern

    def before(op: Any, x: Any, scale: Any) -> Any:
        return op.SimplifiedLayerNormalization(x, scale, _allow_other_attributes=True, _outputs=["y"])

    def is_new(_context: object, y: ir.Value, **_: object) -> bool:
        return y.producer() not in old

    def after(op: Any, x: Any, scale: Any, y: ir.Value) -> Any:
        square = op.Pow(x, op.Constant(value_float=2.0))
        mean = op.ReduceMean(square, op.Constant(value_ints=[-1]), keepdims=1)  # the rules know no opset below 18
        producer = y.producer()
        assert producer is not None
        epsilon = producer.attributes.get_float("epsilon", 1e-5)
        return op.Mul(op.Div(x, op.Sqrt(op.Add(mean, op.Constant(value_float=epsilon)))), scale)

    return RewriteRuleSet([pattern.RewriteRule(before, after, is_new)])


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(model.graph)


def _state_shapes(model: ir.Model) -> None:
    """Let every value state what is known of its shape, else what it states already, else a symbol of its own."""
    facts = infer(model)
    unknown = 0
    for graph in model.graphs():
        for value in defined(graph):
            if value.is_graph_input() or value.is_graph_output() or value.is_initializer():
                continue
            known = facts.get(value)
            if known is None or known.shape is None:
                continue
            value.type = known.type
            stated = known.shape if value.shape is None or len(value.shape) != len(known.shape) else value.shape
            dims = [dim if _is_named(dim) else other for dim, other in zip(known.shape, stated, strict=True)]
            for axis, dim in enumerate(dims):
                if not _is_named(dim):
                    unknown += 1
                    dims[axis] = ir.SymbolicDim(f"unknown_{unknown}")
            value.shape = ir.Shape(dims)


def _is_named(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) or dim.value is not None


@contextmanager
def _overridable_hidden(model: ir.Model) -> Iterator[None]:
    """Hide what overridable initializers hold."""
    hidden = [(value, value.const_value) for value in model.graph.initializers.values() if is_overridable(value)]
    for value, _ in hidden:
        value.const_value = None
    try:
        yield
    finally:
        for value, tensor in hidden:
            value.const_value = tensor


# --------------------------------------------------------------------------------------------------------------- judging


class _Lasting(Session):
    """A session that stays open through several timings, which close what they open."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.provider, self.clock, self.threads = session.provider, session.clock, session.threads
        self.load_seconds, self.inputs, self.outputs = session.load_seconds, session.inputs, session.outputs

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return self._session.run(feed)

    def end(self) -> None:
        """Close it at last."""
        self._session.close()


def _better(model: ir.Model, candidate: ir.Model, current: _Lasting, context: Context) -> tuple[_Lasting | None, str]:
    """The candidate's session if it is right and faster than the model's, and why it is or is not."""
    if (why := _unlike(model, candidate, context)) is not None:
        return None, why
    assert context.data is not None
    try:
        session = _Lasting(context.open_session(candidate))
    except ModelError as error:
        return None, f"the target cannot load them: {error.what}"
    kept = False
    try:
        found = evaluate.compare(current, session, context.data.first(_SAMPLES), progress=context.progress)
        if problems := evaluate.problems(found, session.outputs):
            return None, f"the outputs changed: {'; '.join(problems)}"
        measured = timing.compare(
            _always(current),
            _always(session),
            next(iter(context.data.first(1).batches())).feed,
            limit_seconds=_SECONDS,
            bound=LEAST_GAIN,
            rng=context.rng,
            progress=context.progress,
        )
        times = f"{measured.speedup:.2f} times as fast ({measured.speedup_low:.2f} to {measured.speedup_high:.2f})"
        kept = measured.speedup_low >= LEAST_GAIN
        return (session, f"with this group the model is {times}") if kept else (None, f"with them the model is {times}")
    except ModelError as error:
        return None, f"the target cannot run them: {error.what}"
    finally:
        if not kept:
            session.end()


def _always(session: Session) -> Callable[[], Session]:
    return lambda: session


def _unlike(model: ir.Model, candidate: ir.Model, context: Context) -> str | None:
    """Why the candidate is not a model of the same kind."""
    if (input_specs(model), output_specs(model)) != (input_specs(candidate), output_specs(candidate)):
        return "inputs or outputs changed"
    still = {output.name for node in _nodes(candidate) for output in node.outputs}
    for node in _nodes(model):
        excluded = any(fnmatch.fnmatchcase(site(node), pattern) for pattern in context.exclude)
        if excluded and any(output.name not in still for output in node.outputs):
            return f"{site(node)!r} is excluded, and is a part of them"
    try:
        check(model, full=True)
    except ModelError:
        return None
    try:
        check(candidate, full=True)
    except ModelError as error:
        return f"the result is not valid: {error.what}"
    return None
