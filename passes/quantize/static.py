"""``quantize.static``: operators compute in integers whose scales are known beforehand, from calibration.

    observe the ranges of activations on data (``ranges.py``)  ->  parameters of activations, shared along passing nodes
    weights and biases to integers (``weights.py``)            ->  Q/DQ pairs into the graph (``place.py``)

What is quantized is the core's choice, operator by operator; what can be is the target's (``graphopt/targets/*.yaml``), and the
style too unless an option overrides it. The file stays ONNX with QuantizeLinear and DequantizeLinear, which runtimes turn into
integer kernels when they load it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt import model as models
from graphopt.contracts import Array, Border, Change, Context, LossyPass, Need, PassOptions, Plan, Setting, Site
from graphopt.errors import ModelError, UsageError
from graphopt.graphs import INITIALIZERS_NEED_NO_INPUT, constant
from graphopt.targets import Quantization

from . import correct, layers, nearest, operators, ranges, refine, saturate, weights
from . import network as networks
from .layers import Learned
from .network import Network
from .operators import Operator
from .place import Placer, Weights
from .scheme import Parameters, kind, limits, of_activation
from .tables import IR_VERSION, OPSET, OPSET_16_BITS, OUTPUT_RANGE, QUANTIZERS

INT8 = Setting("int8", "int8")
_METHODS: tuple[ranges.Method, ...] = ("minmax", "mse")
"""What ``auto`` tries: nothing clipped, or what is clipped weighed against what is rounded."""


class StaticOptions(PassOptions):
    """What is left out is as the target wants it."""

    activations: Literal["uint8", "int8", "uint16"] | None = Field(None, description="type of activations")
    symmetric: bool | None = Field(None, description="whether activations have the middle of their type as zero point")
    per_channel: bool | None = Field(None, description="whether each output channel of a weight has a scale of its own")
    weight_bits: Literal[7, 8] | None = Field(None, description="bits of weights that are used")
    method: ranges.Method | Literal["auto"] = Field(
        "auto", description="how ranges of activations are chosen; auto: minmax or mse, whichever leaves the outputs nearer"
    )
    weight_method: weights.Method = Field("minmax", description="minmax, or mse: the scale with the smallest squared error")
    samples: int | None = Field(None, ge=1, description="calibrate on so many samples; all of the data by default")
    rounding: Literal["auto", "nearest", "adaround"] = Field("auto", description="how weights are rounded; auto: as data say")
    bias_correction: Literal["auto", "on", "off"] = Field("auto", description="whether biases make up for mean errors")
    recovery_samples: int = Field(256, ge=2, description="samples that rounding and bias correction are learned and judged on")
    freeze: bool = Field(
        False, description="whether weights that are listed as inputs, so that a caller may replace them, become constants"
    )
    required: bool = Field(True, description="whether a model with nothing to quantize is an error")


class StaticQuantize(LossyPass):
    """Static int8; see the module.

    Raises (in ``sites`` and ``apply``):
        UsageError: Nothing is known of integers on the target.
        ModelError: The opset is too old, or nothing can be quantized and ``required`` is set.
        DataError: The calibration data are broken; as ``Context.observe``.
    """

    name = "quantize.static"
    summary = "int8 with calibrated scales, as Q/DQ pairs in the style of the target"
    Options = StaticOptions
    options: StaticOptions
    needs = frozenset({Need.DATA})
    per_site = True

    def __init__(self, options: PassOptions | None = None) -> None:
        super().__init__(options)
        self._style: Quantization | None = None
        self._learned: dict[tuple[object, ...], tuple[object, Learned]] = {}
        """What is known of each model, by the names of its operators and their weights, which are held too."""
        self._methods: dict[tuple[object, ...], tuple[object, ranges.Method]] = {}
        """What ``auto`` came to, by the names of the operators and their weights, which are held too."""

    def sites(self, model: ir.Model, context: Context) -> Sequence[Site]:
        """Every operator that the target computes in integers; declined ones with why."""
        network = self._analyze(self._frozen(model), context)
        found = [_site(operator) for operator in network.operators.values()]
        declined = [Site(name, node.op_type, (), why=why, nodes=_names([node])) for node, name, why in network.declined]
        if not found and self.options.required and not _is_dynamic(model):
            raise _nothing(model, network)
        return [*found, *declined]

    def borders(self, model: ir.Model, sites: Sequence[Site]) -> Sequence[Border]:
        """The values that pass between operators, those through passing nodes included."""
        assert self._style is not None, "sites are listed first"
        known = {site.name: site for site in sites}
        network = networks.analyze(self._frozen(model), self._style)
        found = []
        for operator in network.operators.values():
            site = known.get(operator.name)
            for value in network.inputs(operator):
                found += [
                    Border(known.get(maker.name) if maker else None, site, network.elements(value))
                    for maker in dict.fromkeys(network.makers(value))
                ]
            if None in network.readers(operator.output) and not network.gives_floats(operator):
                found.append(Border(site, None, network.elements(operator.output)))
        return [border for border in found if border.a is not border.b]

    def apply(self, model: ir.Model, plan: Plan, context: Context) -> Sequence[Change]:
        """Quantize the planned operators."""
        if self._freezes(model):
            _freeze(model)
        network = self._analyze(model, context)
        learned = self._known(network)
        if learned.choices is None and not context.draft:
            learned.choices, learned.changes = self._decide(network, context)
        done = self._quantize(model, [site.name for site in plan], context, learned.choices or refine.Choices())
        sums = {site.name: learned.sums[site.name] for site in plan if site.name in learned.sums}
        if sums and context.target.provider == "CPUExecutionProvider" and network.style.activations == "uint8":
            statement = Change("model", "where sums of products are exact", saturate.statement(sums))
            return [*done, *learned.changes, statement]
        return [*done, *learned.changes]

    def _quantize(self, model: ir.Model, names: Iterable[str], context: Context, choices: refine.Choices) -> list[Change]:
        """Quantize the named operators of ``model`` in place."""
        network = self._analyze(model, context)
        learned = self._known(network)
        chosen = networks.chosen(network, names)
        parameters = self._parameters(network, self._ranges(network, context))
        changes, fitting = [], []
        for operator in chosen:
            why = _misfit(operator, parameters[network.source(operator.output)], network.style)
            if why is None:
                fitting.append(operator)
            else:
                changes.append(Change(operator.name, "left alone", why, done=False))
        if choices.correction and any(o.name not in learned.shifts for o in fitting if layers.takes_bias(o)):
            learned.shifts = self._shifts(network, context, choices)
        types = {o.name: parameters[network.source(network.inputs(o)[0])].dtype.name.lower() for o in fitting}
        weighted = [operator for operator in fitting if operator.weight is not None]
        made = layers.make(network, weighted, parameters, learned, choices, context)
        Placer(network, parameters).place([_with_bias(operator, made) for operator in fitting], made)
        said = [Change(o.name, _what(o, types[o.name], network.style, learned), _why(o, learned)) for o in fitting]
        return [*said, *changes]

    def _decide(self, network: Network, context: Context) -> tuple[refine.Choices, list[Change]]:
        """What is done about rounding and biases, by what it gains with every operator quantized."""
        options, names = self.options, [*network.operators]

        def quantize(clone: ir.Model, choices: refine.Choices) -> None:
            self._quantize(clone, names, context, choices)

        return refine.decide(
            network.model, options.rounding, options.bias_correction, quantize, context, options.recovery_samples
        )

    def _shifts(self, network: Network, context: Context, choices: refine.Choices) -> dict[str, Array]:
        """What to add to each bias, found with every operator quantized."""
        clone = models.clone(network.model)
        self._quantize(clone, network.operators, context, replace(choices, correction=False))
        outputs = {o.name: layers.biased_output(o) for o in network.operators.values() if layers.takes_bias(o)}
        half = refine.held_out(context, self.options.recovery_samples)
        found = correct.shifts(network.model, clone, [*outputs.values()], context, half)
        return {name: found[output.name] for name, output in outputs.items()}

    def _known(self, network: Network) -> Learned:
        """What was learned of this model."""
        key, held = _identity(network)
        if key not in self._learned:
            self._learned[key] = held, Learned(self.options.weight_method, self.options.recovery_samples)
        return self._learned[key][1]

    # ------------------------------------------------------------------------------------------------------------- parts

    def _freezes(self, model: ir.Model) -> bool:
        return self.options.freeze or (model.ir_version or 0) < INITIALIZERS_NEED_NO_INPUT

    def _frozen(self, model: ir.Model) -> ir.Model:
        """The model as it is quantized; the one that is given stays."""
        if not self._freezes(model):
            return model
        clone = models.clone(model)
        _freeze(clone)
        return clone

    def _analyze(self, model: ir.Model, context: Context) -> Network:
        self._style = self._styled(context)
        _check_opset(model, self._style)
        return networks.analyze(model, self._style)

    def _styled(self, context: Context) -> Quantization:
        """The target's style with what the options override."""
        style = context.target.quantization
        if style is None:
            hint = "Give the target's file a 'quantization:', or choose another target."
            raise UsageError("nothing is known of integers on this target", where=f"target {context.target.name}", hint=hint)
        given = self.options.model_dump(include={"activations", "symmetric", "per_channel", "weight_bits"}, exclude_none=True)
        if "activations" in given:  # one type for all of them
            given["unsigned"] = False
        return style.model_copy(update=given)

    @property
    def _known_style(self) -> Quantization:
        assert self._style is not None
        return self._style

    def _ranges(self, network: Network, context: Context) -> dict[ir.Value, tuple[float, float]]:
        """The range of each source that an operator reads or makes, whatever is planned: so that it is observed once."""
        method, style = self._method(network, context), self._known_style
        values = {value.name or "": value for value in network.observed()}
        fixed = {name: known for name, value in values.items() if (known := _known_range(value)) is not None}
        wanted = {name: [ranges.OBSERVERS[method]] for name in values if name not in fixed}
        found = context.observe(network.model, wanted, samples=self.options.samples)
        chosen = dict(fixed)
        for name, [result] in found.items():
            dtype, symmetric = kind(result.low, style)
            first, last = limits(dtype, symmetric=symmetric)
            slope = networks.slope(values[name])
            chosen[name] = ranges.choose(result, method, levels=last - first + 1, symmetric=symmetric, slope=slope)
        return networks.join(network, {value: chosen[name] for name, value in values.items()})

    def _method(self, network: Network, context: Context) -> ranges.Method:
        """How ranges are chosen; ``auto`` is decided once for each model, with everything quantized."""
        if self.options.method != "auto":
            return self.options.method
        key, held = _identity(network)
        if key not in self._methods:
            if context.draft:
                return _METHODS[0]
            plan = {_site(operator): INT8 for operator in network.operators.values()}

            plain = {"rounding": "nearest", "bias_correction": "off"}

            def quantized(method: ranges.Method) -> ir.Model:
                candidate = models.clone(network.model)
                StaticQuantize(self.options.model_copy(update={"method": method, **plain})).apply(candidate, plan, context)
                return candidate

            ways = {method: partial(quantized, method) for method in _METHODS}
            self._methods[key] = held, nearest.choose(network.model, ways, context)
        return self._methods[key][1]

    def _parameters(self, network: Network, found: Mapping[ir.Value, tuple[float, float]]) -> dict[ir.Value, Parameters]:
        """Parameters of each source, and of each constant that is quantized like an activation."""
        style = self._known_style
        made = {value: of_activation(low, high, style) for value, (low, high) in found.items()}
        for operator in network.operators.values():
            for index in operator.constants:
                value = operator.node.inputs[index]
                tensor = constant(value)
                assert value is not None
                assert tensor is not None
                array = tensor.numpy()
                low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
                made[value] = of_activation(low, high, style)
        return made


def _identity(network: Network) -> tuple[tuple[object, ...], list[ir.TensorProtocol | None]]:
    """What tells a model from others, clones aside: names of operators and ids of weights, which must be held meanwhile."""
    held = [constant(each.node.inputs[each.weight]) for each in network.operators.values() if each.weight is not None]
    return (*network.operators, *map(id, held)), held


def _what(operator: Operator, activations: str, style: Quantization, learned: Learned) -> str:
    if operator.weight is None:
        return activations
    kind = "per channel" if style.per_channel and operator.weight_axis is not None else "per tensor"
    narrow = " of 7 bits" if operator.name in learned.narrow else ""
    return f"{activations} activations, {style.weights} weights{narrow} {kind}"


def _why(operator: Operator, learned: Learned) -> str:
    seen = learned.narrow.get(operator.name)
    return "as planned" if seen is None else f"as planned; with 8 bits {seen.text}"


def _with_bias(operator: Operator, made: Mapping[str, Weights]) -> Operator:
    """The operator with a place for a bias where it gets its first one."""
    if operator.bias is not None or operator.name not in made or made[operator.name].bias is None:
        return operator
    return replace(operator, bias=(operator.node, 2))


def _freeze(model: ir.Model) -> None:
    """Let no caller replace an initializer. Before IR version 4 none could, though all had to be listed as inputs."""
    for value in [value for value in model.graph.inputs if value.is_initializer()]:
        model.graph.inputs.remove(value)
    model.ir_version = max(model.ir_version or 0, IR_VERSION)


def _site(operator: Operator) -> Site:
    return Site(operator.name, operator.node.op_type, (INT8,), nodes=_names(operator.nodes))


def _names(nodes: Sequence[ir.Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes if node.name)


def _is_dynamic(model: ir.Model) -> bool:
    """Whether an earlier pass made integers of the model whose scales are found in each run."""
    return any(node.op_type.startswith("DynamicQuantize") for node in models.nodes(model))


def _nothing(model: ir.Model, network: Network) -> ModelError:
    """The error for a model with nothing to quantize: how often which reason."""
    count = len(network.declined)
    if not count:
        kinds = ", ".join(network.style.static)
        what = f"nothing can be quantized: the target has integer kernels for {kinds}, and the model has none of these"
        return ModelError(what)
    reasons: dict[str, int] = {}
    for _, _, why in network.declined:
        reasons[why] = reasons.get(why, 0) + 1
    said = "; ".join(f"{number} × {why}" for why, number in sorted(reasons.items(), key=lambda item: -item[1])[:3])
    quantized = any(node.op_type in QUANTIZERS for node in models.nodes(model))
    hint = "The model is quantized already: start from the float model." if quantized else None
    if hint is None and any(why == operators.REPLACEABLE for why in reasons):
        hint = "If no caller does: --set quantize.static.freeze=true"
    return ModelError(f"0 of {count} operators can be quantized: {said}", hint=hint)


def _check_opset(model: ir.Model, style: Quantization) -> None:
    """Raise ModelError where the model's version of the operators has not what the style needs."""
    needed, why = OPSET, "scales per channel"
    if style.activations == "uint16":
        needed, why = OPSET_16_BITS, "16-bit activations"
    opset = models.opset(model)
    if opset < needed:
        hint = f"Upgrade it: --set shapes.opset.version={max(needed, 20)} (a lossless pass, checked like any other)."
        raise ModelError(f"the model is at opset {opset}, and quantizing with {why} needs {needed}", hint=hint)


def _known_range(value: ir.Value) -> tuple[float, float] | None:
    node = value.producer()
    return None if node is None else OUTPUT_RANGE.get(node.op_type)


def _misfit(operator: Operator, output: Parameters, style: Quantization) -> str | None:
    """Why the quantization of the output would not do the work of the Relu or Clip that was taken in; None when it does."""
    if operator.activation is None or style.fuses_activations:
        return None
    ends = np.array(operators.bounds(operator.activation), np.float64) / float(output.scale)
    first, last = np.round(ends) + float(output.zero_point)
    if first <= output.low and last >= output.high:
        return None
    return f"its output has a range that does not do the work of its {operator.activation.op_type}"
