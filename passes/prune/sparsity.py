"""``prune.sparsity``: single weights become zero, anywhere or N of M in a row, and the others make up for them (``sparse``).

Layers are changed in topological order, each fitted to what the original gave there from what it reads by now (see
``graphopt.reconstruct``): it also makes up for the zeros of those before it.

Shapes stay, and so do the MACs: what it saves is bytes, where the zeros are not stored (``store=sparse``, which takes 12 bytes
a weight that is left instead of 4), or where the file is compressed; and time on devices that skip zeros (2:4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field, field_validator, model_validator

from graphopt import model as models
from graphopt.contracts import Array, Change, Context, LossyPass, Need, PassOptions, Plan, Setting, Site
from graphopt.graphs import constant, site
from graphopt.model import SPARSE
from graphopt.observe import Gram, observable, packs
from graphopt.reconstruct import Layer, Moments, Step, affected, best, centred, layers, refit

from .sparse import Criterion, Pattern, scores, settled, sparse

_AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What is tried where nothing is stated."""
_LONGEST = 4096
"""Elements of a row at most: 134 MB of moments."""
_PACK_BYTES = 384 << 20
_ROWS = 20000
_LEAST_WEIGHTS = 256
"""Layers with fewer weights are left alone."""


class SparsityOptions(PassOptions):
    """How many weights become zero, and which."""

    amount: float | None = Field(
        None, gt=0, lt=1, description="the part of the weights that becomes zero; none stated: as many as the budget allows"
    )
    pattern: str | None = Field(None, description="instead: kept:of, as 2:4 or 4:8, of the weights that one output reads")
    amounts: dict[str, float] = Field(
        default_factory=dict, description="the part for layers of one operator, by its type (Conv, Gemm, MatMul); 0: none"
    )
    scope: Literal["local", "global"] = Field(
        "local", description="local: the same part of each layer; global: of all together, so that some lose more than others"
    )
    criterion: Criterion = Field("reconstruction", description="what decides which weights go")
    reconstruct: bool = Field(True, description="whether the weights that stay make up for those that go")
    store: Literal["dense", "sparse"] = Field("dense", description="sparse: zeros are not stored, where that takes less")
    samples: int = Field(256, ge=1, description="samples of the data that are used at most")

    @field_validator("pattern", mode="before")
    @classmethod
    def _minutes(cls, found: object) -> object:
        """YAML reads 2:4 as two minutes and four seconds."""
        return "{}:{}".format(*divmod(found, 60)) if isinstance(found, int) else found

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, text: str | None) -> str | None:
        if text is not None:
            Pattern.parse(text)
        return text

    @field_validator("amounts")
    @classmethod
    def _amounts(cls, found: dict[str, float]) -> dict[str, float]:
        for name, part in found.items():
            if name not in _OPERATORS:
                raise ValueError(f"{name!r} is no operator with weights: {', '.join(_OPERATORS)} are")
            if not 0 <= part < 1:
                raise ValueError(f"{part:g} for {name} is not a part: from 0 to less than 1")
        return found

    @model_validator(mode="after")
    def _one(self) -> SparsityOptions:
        if self.pattern is not None and (self.amount is not None or self.amounts or self.scope == "global"):
            raise ValueError("a pattern is the same everywhere: no amount, amounts or global scope goes with it")
        return self


_OPERATORS = ("Conv", "Gemm", "MatMul")


class PruneSparsity(LossyPass):
    """Zeros among weights; see the module.

    Raises (in ``apply``):
        DataError, ModelError: As ``Context.observe``.
    """

    name = "prune.sparsity"
    summary = "make weights zero, anywhere or in a pattern (2:4), and fit the others to data; no labels, no training"
    Options = SparsityOptions
    options: SparsityOptions
    needs = frozenset({Need.DATA})

    def decided(self) -> bool:
        """Whether the options say how much goes."""
        return self.options.amount is not None or self.options.pattern is not None or bool(self.options.amounts)

    def sites(self, model: ir.Model, context: Context) -> Sequence[Site]:
        """Every layer with weights of its own, with the parts of them that may become zero; declined ones with why."""
        del context
        names = observable(model)
        return [self._site(node, layer, names) for node, layer in layers(model).items()]

    def apply(self, model: ir.Model, plan: Plan, context: Context) -> Sequence[Change]:
        """Make zeros as planned."""
        planned = {site.name: setting for site, setting in plan.items()}
        found = {site(node): layer for node, layer in layers(model).items() if site(node) in planned}
        settings = {name: self._gone(planned[name]) for name in found}
        if self.options.scope == "global" and not self.options.pattern:
            settings = self._shared(model, found, settings, context)
        if self.options.reconstruct:
            return self._in_order(model, found, settings, context)
        changes = []
        with context.progress.stage("making weights zero", len(found)) as step:
            for name, moments, _ in self._moments(model, found, context):
                matrix = _ordered(found[name])
                after = sparse(matrix, moments, settings[name], self.options.criterion, fit=False)
                changes.append(self._put(found[name], matrix, after, None, moments))
                step(1)
        return changes

    # ------------------------------------------------------------------------------------------------------------- parts

    def _site(self, node: ir.Node, layer: Layer, names: frozenset[str]) -> Site:
        name, kind = site(node), node.op_type
        groups, k, out = _shape(layer)
        why = ""
        if layer.reads.name not in names:
            why = "what it reads cannot be observed"
        elif k > _LONGEST:
            why = f"its rows are longer than {_LONGEST}"
        elif groups * k * out < _LEAST_WEIGHTS or groups > 1:
            why = "it has few weights" if groups == 1 else "a grouped convolution has few weights for each output"
        elif self.options.pattern and k < Pattern.parse(self.options.pattern).of:
            why = f"its rows of {k} are shorter than the pattern"
        settings = () if why else self._settings(kind)
        return Site(
            name, kind, settings, why=why or ("" if settings else "the options leave it alone"), nodes=(node.name or "",)
        )

    def _settings(self, kind: str) -> tuple[Setting, ...]:
        if self.options.pattern:
            return (Setting(self.options.pattern, Pattern.parse(self.options.pattern)),)
        stated = self.options.amounts.get(kind, self.options.amount)
        if stated is None:
            parts: Sequence[float] = () if self.options.amounts else _AMOUNTS
        else:
            parts = [stated] if stated > 0 else []
        return tuple(Setting(f"{part:.0%} zeros", part) for part in parts)

    @staticmethod
    def _gone(setting: Setting) -> float | Pattern:
        assert isinstance(setting.value, float | Pattern)
        return setting.value

    def _shared(
        self, model: ir.Model, found: Mapping[str, Layer], settings: Mapping[str, float | Pattern], context: Context
    ) -> dict[str, float | Pattern]:
        """The part of each layer, where the least scores of all layers go; scores are parts of what a layer gives."""
        scored, total = {}, 0.0
        for name, moments, _ in self._moments(model, found, context):
            matrix = _ordered(found[name])
            energy = max(float(np.einsum("ko,kl,lo->", matrix, moments, matrix, optimize=True)), 1e-30)
            one = scores(matrix, moments, self.options.criterion)
            squared = one if self.options.criterion == "reconstruction" else one**2
            scored[name] = (squared / energy).reshape(-1).astype(np.float32)
            part = settings[name]
            assert isinstance(part, float)
            total += part * squared.size
        every = np.concatenate([*scored.values()])
        limit = np.partition(every, round(total) - 1)[round(total) - 1] if total >= 1 else -1.0
        return {name: min(float((one <= limit).mean()), _MOST) for name, one in scored.items()}

    def _moments(self, model: ir.Model, found: Mapping[str, Layer], context: Context) -> Iterator[tuple[str, Array, Array]]:
        """Name, second moments [k, k] and mean [k] of what each layer reads, as ``_ordered`` orders it; a few at a time."""
        assert context.data is not None, "the pass says that it needs data"
        samples = min(self.options.samples, context.data.size)
        grams = {name: Gram(one.patches, rows=-(-max(_ROWS, 4 * _shape(one)[1]) // samples)) for name, one in found.items()}
        original = models.clone(model)
        for pack in packs(found, lambda name: 8 * _shape(found[name])[1] ** 2, _PACK_BYTES):
            wanted: dict[str, list[Gram]] = {}
            for name in pack:
                asked = wanted.setdefault(found[name].reads.name or "", [])
                if grams[name] not in asked:
                    asked.append(grams[name])
            results = context.observe(original, wanted, samples=samples)
            for name in pack:
                value = found[name].reads.name or ""
                one = results[value][wanted[value].index(grams[name])]
                order = _order(found[name])
                products, mean = one.products[0] / one.count, one.sums[0] / one.count
                moments = products[np.ix_(order, order)]
                if found[name].free:  # the bias takes the mean
                    moments = moments - np.outer(mean[order], mean[order])
                yield name, moments, mean[order]

    def _in_order(
        self, model: ir.Model, found: Mapping[str, Layer], settings: Mapping[str, float | Pattern], context: Context
    ) -> list[Change]:
        """Layer by layer: the best weights for what it reads by now, and of these so many zero."""
        assert context.data is not None, "the pass says that it needs data"
        original = models.clone(model)

        def put(step: Step, fitted: Sequence[Moments], held_out: Sequence[Moments]) -> Change | None:
            layer, name = step.layer, site(step.layer.node)
            change = best(step, fitted, held_out)
            if name not in settings:
                return change
            every, order = fitted[0] + held_out[0], _order(layer)
            before, mean = _ordered(layer), every.inputs[order] / every.count
            products = centred(every.products, every.inputs, every.count) if layer.free else every.products
            moments = products[np.ix_(order, order)] / every.count
            after = sparse(before, moments, settings[name], self.options.criterion)
            after = settled(before, moments, after)
            return self._put(layer, before, after, layer.offset() + mean @ (before - after) if layer.free else None, moments)

        steps = affected(original, model, {layer.node for layer in found.values()})
        return refit(original, model, steps, context, context.data.first(self.options.samples), put)

    def _put(self, layer: Layer, before: Array, after: Array, offset: Array | None, moments: Array) -> Change:
        matrix = np.empty_like(after)
        matrix[_order(layer)] = after
        layer.put(matrix[np.newaxis], offset)
        if self.options.store == "sparse":
            tensor = constant(layer.weight)
            assert tensor is not None
            tensor.metadata_props[SPARSE] = "1"
        change = before - after
        noise = float(np.einsum("ko,kl,lo->", change, moments, change, optimize=True))
        signal = max(float(np.einsum("ko,kl,lo->", before, moments, before, optimize=True)), 1e-30)
        zeros = f"{np.mean(after == 0):.0%} of {after.size} weights are zero"
        what = f"{zeros}, {self.options.pattern}" if self.options.pattern else zeros
        return Change(site(layer.node), what, f"noise to signal of what it gives: {noise / signal:.1e}")


_MOST = 0.98
"""Of a layer's weights that may go under the global scope."""


def _shape(layer: Layer) -> tuple[int, int, int]:
    """Groups, elements of a row, outputs; no weight is read."""
    tensor = constant(layer.weight)
    assert tensor is not None
    sizes = tensor.shape.numpy()
    if layer.patches is not None:
        return layer.groups, int(np.prod(sizes[1:])), sizes[0] // layer.groups
    return 1, sizes[layer.axis], sizes[1 - layer.axis]


def _order(layer: Layer) -> Array:
    """Rows of the matrix with the channels in a row: of a Conv, position by position of its kernel."""
    k = _shape(layer)[1]
    return np.arange(k).reshape(-1, layer.kernel).T.reshape(-1)


def _ordered(layer: Layer) -> Array:
    return np.asarray(layer.matrix()[0][_order(layer)])
