"""``factorize``: linear layers become products of smaller ones, at the ranks that cost least accuracy for what they save.

    list the layers and their forms (``layers``, ``forms``)  ->  second moments of their inputs on data  ->  the best factors
    for every rank from one decomposition a form  ->  the core chooses ranks  ->  write (``write``)  ->  the second factors, and
    the layers behind them, are fitted one after the other to what the original gave (``graphopt.reconstruct``)

What a rank costs is the part of the layer's output energy that it loses, times what such a loss does to the model's outputs:
measured for each layer alone at one rank. What it saves is counted (multiply-accumulates, bytes) and
measured (``clock``), before anything is decomposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from graphopt import cost, sensitivity
from graphopt import model as models
from graphopt.contracts import (
    Array,
    Change,
    Context,
    Figure,
    Grade,
    LossyPass,
    Need,
    PassOptions,
    Plan,
    Remains,
    Session,
    Setting,
    Site,
)
from graphopt.dataset import Dataset
from graphopt.graphs import INITIALIZERS_NEED_NO_INPUT
from graphopt.model.weights import weight_bytes
from graphopt.names import Names
from graphopt.reconstruct import affected, refit

from . import switch, vbmf
from .clock import saved_milliseconds
from .factors import Factored, factorize
from .forms import Option, Sizes, option_of, options
from .layers import Layer, layers
from .moments import Moments, moments, packs
from .write import write

_SAMPLES = 1000
_USELESS = 0.5
"""Noise-to-signal ratio of an output that a layer alone may cause; what loses more is not taken unless a goal is stated."""
_GRADED_ON = 32
"""Samples on which the damage of each layer is measured at most."""
_GRADED_BYTES = 2 << 30
"""Bytes of weights that are run through for one layer, sample by sample: fewer samples for large models."""


class FactorizeOptions(PassOptions):
    """What is to be saved, or as much as the budget of accuracy allows; and how."""

    rank: Annotated[int, Field(ge=1)] | Literal["vbmf"] | None = Field(
        None,
        description="the rank of every factorized weight; vbmf: of each, its components that are more than noise",
    )
    energy: float | None = Field(None, gt=0, lt=1, description="the part of each layer's output energy that its factors keep")
    macs: float | None = Field(None, gt=0, lt=1, description="the part of the model's multiply-accumulates that may remain")
    bytes: float | None = Field(None, gt=0, lt=1, description="the part of the file's bytes that may remain")
    latency: float | None = Field(None, gt=0, lt=1, description="the part of the model's time that may remain")
    method: Literal["auto", "data", "svd"] = Field(
        "auto",
        description="factors that are best for the layer's inputs on the data, or for any; auto: on data if they are given",
    )
    cp: bool = Field(
        False,
        description="whether CP factors of small convolutions (640 elements a patch) are tried too: they lose less at the same "
        "cost, but have no closed form; to fit them takes up to seconds a layer",
    )
    samples: int = Field(_SAMPLES, ge=1, description="samples of the data that are used at most")
    refit: bool = Field(
        True,
        description="whether the second factors, and the layers behind them, are fitted to the original's values on the data",
    )
    multiple: int | None = Field(
        None, ge=1, description="ranks are multiples of it; by default of 8, the vector width, and of less in narrow layers"
    )

    @model_validator(mode="after")
    def _one_goal(self) -> FactorizeOptions:
        goals = [name for name in ("rank", "energy", "macs", "bytes", "latency") if getattr(self, name) is not None]
        if len(goals) > 1:
            raise ValueError(f"{' and '.join(goals)} exclude one another")
        return self


@dataclass
class _Known:
    """What was found out about a model, by the names of its sites."""

    weights: tuple[ir.TensorProtocol, ...]
    """Held, so that their ids stay their own."""
    factored: dict[str, Factored] = field(default_factory=dict)
    means: dict[str, Array] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    """Sites that are slower in every form."""


class Factorize(LossyPass):
    """Low-rank factorization; see the module.

    Raises (in ``sites``, ``grades`` and ``apply``):
        DataError, ModelError: As ``Context.observe``.
    """

    name = "factorize"
    summary = "weights of low rank become products of smaller ones, best for what the layers read; no labels, no training"
    Options = FactorizeOptions
    options: FactorizeOptions
    needs = frozenset({Need.DATA})
    graded = True

    def __init__(self, options: PassOptions | None = None) -> None:
        super().__init__(options)
        self._known: _Known | None = None

    def decided(self) -> bool:
        """Whether the options say how much is to be saved."""
        return self.remains() is not None or self.options.rank is not None or self.options.energy is not None

    def sites(self, model: ir.Model, context: Context) -> Sequence[Site]:
        """Every linear layer, with the forms and ranks that cost less than it does; declined ones with why."""
        found = [self._site(model, layer) for layer in layers(model)]
        if self.options.energy is None:
            return found
        free = [site for site in found if site.settings]
        known = self._analysed(model, free, context)
        return [self._enough(site, known) if site.settings else site for site in found]

    def grades(self, model: ir.Model, sites: Sequence[Site], context: Context) -> Mapping[tuple[Site, Setting], Grade]:
        """What each form and rank saves and costs, layer by layer.

        Times come first: where time alone is to be saved, layers that no form makes faster are not looked at any further.
        """
        by_name = {layer.name: layer for layer in layers(model)}
        dims = {} if context.data is None else cost.dims_as_fed(model, context.data)
        macs = cost.node_macs(model, dims)
        times = saved_milliseconds(model, sites, context)
        slower = {site for site in sites if times and max(times[site, setting] for setting in site.settings) <= 0}
        clock = context.goal == "latency" and (self.remains() or Remains("latency", 1.0)).of == "latency"
        asked = [site for site in sites if not clock or site not in slower]
        known = self._analysed(model, asked, context)
        known.declined |= {site.name: "not faster when measured" for site in slower}
        damage = self._damage(model, asked, context)
        grades = {}
        for site in sites:
            layer = by_name[site.name]
            sizes, width = Sizes.of(layer), layer.dtype.itemsize
            spent = sum(macs.get(node) or 0 for node in layer.nodes)
            for setting in site.settings:
                option = option_of(setting)
                part = sizes.cost(option) / sizes.whole(layer)
                stored = sizes.whole(layer, strided=False) - sizes.cost(option, strided=False)
                saved = times[site, setting] if times else 0.0
                harm = damage[site] * known.factored[site.name].loss[option] if site in damage else 0.0
                if harm > _USELESS * len(model.graph.outputs) and self.remains() is None:
                    harm = math.inf
                grades[site, setting] = Grade(harm, round(spent * (1 - part)), round(stored * width), saved)
            if all(grades[site, setting].damage == math.inf for setting in site.settings):
                known.declined[site.name] = "at every rank that saves anything it loses half of the outputs' energy"
        return grades

    def apply(self, model: ir.Model, plan: Plan, context: Context) -> Sequence[Change]:
        """Write the planned layers as factors."""
        known = self._analysed(model, [*plan], context)
        by_name = {layer.name: layer for layer in layers(model)}
        names = Names(model.graph)
        planned = {site.name for site in plan}
        costly = "it loses more for what it saves than the layers that were taken"
        left = [name for name in {**known.factored, **known.declined} if name in by_name and name not in planned]
        changes = [Change(name, "left alone", known.declined.get(name, costly), done=False) for name in left]
        original = models.clone(model)
        written = {use.node.outputs[0].name for site in plan for use in by_name[site.name].uses}
        for site, setting in plan.items():
            changes.append(self._write(by_name[site.name], option_of(setting), known, names))
        data = self._data(context)
        if self.options.refit and not context.draft and data is not None:
            steps = affected(original, model, {node for node in model.graph if node.outputs[0].name in written})
            changes += refit(original, model, steps, context, data)
        return changes

    def figures(self, plan: Plan) -> Sequence[Figure]:
        """The singular values of the chosen layers, those that were kept marked."""
        if self._known is None or not plan:
            return ()
        series, marks = {}, {}
        for site, option in ((site, option_of(setting)) for site, setting in plan.items()):
            spectra = self._known.factored[site.name].spectra
            if option.kind in spectra:  # CP has no singular values
                series[site.name] = spectra[option.kind].tolist()
                marks[site.name] = float(option.ranks[0])
        title = "Singular values of the factorized layers up to the largest rank that saves anything; those kept are filled"
        return (Figure(title, "curves", series, marks=marks),)

    # ------------------------------------------------------------------------------------------------------------- sites

    def _site(self, model: ir.Model, layer: Layer) -> Site:
        nodes = tuple(node.name or "" for node in layer.nodes)
        why, settings = layer.why, []
        if not why and (model.ir_version or 0) < INITIALIZERS_NEED_NO_INPUT:
            why = "in a file of IR version 3 every weight is an input; put shapes.opset before"
        if not why and self._rank(layer) == 0:
            why = "none of its components stands out of noise"
        if not why:
            offered = options(layer, self._rank(layer), self.options.multiple, cp=self.options.cp)
            settings = [Setting(option.label, option) for option in offered]
            why = "" if settings else self._too_small(layer)
        return Site(layer.name, layer.node.op_type, tuple(settings), why, nodes)

    def _rank(self, layer: Layer) -> int | None:
        """The only rank that is wanted of a layer; None: any."""
        if self.options.rank != "vbmf":
            return self.options.rank
        return max(vbmf.rank(matrix) for matrix in layer.matrix())

    def _too_small(self, layer: Layer) -> str:
        sizes = Sizes.of(layer)
        shape = "×".join(map(str, layer.shape))
        even = sizes.whole(layer) / max(1, sizes.group * (sizes.width + sizes.outputs))
        rank = self._rank(layer)
        wanted = "" if rank is None else f", so rank {rank} saves nothing"
        return f"below break-even: its weight {shape} is cheaper than factors from rank {even:.0f} on{wanted}"

    def _enough(self, site: Site, known: _Known) -> Site:
        """The site with the cheapest setting that keeps the energy that the options ask for."""
        loss = known.factored[site.name].loss
        kept = [setting for setting in site.settings if 1 - loss[option_of(setting)] >= (self.options.energy or 0)]
        if not kept:
            return replace(site, settings=(), why=f"no rank that saves anything keeps {self.options.energy:g} of the energy")
        return replace(site, settings=(kept[-1],))

    # -------------------------------------------------------------------------------------------------------- decomposing

    def _analysed(self, model: ir.Model, sites: Sequence[Site], context: Context) -> _Known:
        """The factors of these sites; found once for each model."""
        by_name = {layer.name: layer for layer in layers(model)}
        held = tuple(tensor for layer in by_name.values() for w in layer.weights if (tensor := w.const_value) is not None)
        if self._known is None or [*map(id, self._known.weights)] != [*map(id, held)]:
            self._known = _Known(held)
        known = self._known
        missing = [site for site in sites if site.name not in known.factored]
        if not missing:
            return known
        with context.progress.stage("decomposing", len(missing)) as step:
            data = self._data(context)
            for pack in packs([by_name[site.name] for site in missing]):
                seen = moments(model, pack, data, context) if data is not None else {}
                for layer in pack:
                    found = seen.get(layer.name, Moments())
                    offered = options(layer, self._rank(layer), self.options.multiple, cp=self.options.cp)
                    known.factored[layer.name] = factorize(layer.matrix(), found.grams, Sizes.of(layer), offered, found.outputs)
                    if found.means is not None:
                        known.means[layer.name] = found.means
                    step(1)
        return known

    def _data(self, context: Context) -> Dataset | None:
        """What the factors are to be best for; None: no input in particular."""
        data = context.data
        if data is None or self.options.method == "svd" or (self.options.method == "auto" and data.generated):
            return None
        return data.first(min(self.options.samples, data.size))

    def _write(self, layer: Layer, option: Option, known: _Known, names: Names) -> Change:
        factored = known.factored[layer.name]
        sizes, loss = Sizes.of(layer), factored.loss[option]
        shift = self._shift(layer, option, known)
        shape = "×".join(map(str, layer.shape))
        before, after = sizes.whole(layer, strided=False), sizes.cost(option, strided=False)
        part = sizes.cost(option) / sizes.whole(layer)
        again = f" (rank {layer.rank} before)" if layer.is_pair else ""
        what = f"{option.label}{again}, weight {shape}: {before} numbers to {after}, {100 * part:.0f} % of its MACs"
        write(layer, option, factored.parts(option), shift, names)
        return Change(layer.name, what, f"keeps {100 * (1 - loss):.2f} % of its outputs' energy")

    def _shift(self, layer: Layer, option: Option, known: _Known) -> Array | None:
        """What the bias must make up for, on average; None where it cannot."""
        means = known.means.get(layer.name)
        if means is None:
            return None
        missing = layer.matrix() - known.factored[layer.name].product(option)
        shift = np.matmul(means[:, np.newaxis].astype(np.float64), missing).reshape(-1)
        return np.asarray(shift * (layer.node.attributes.get_float("alpha", 1.0) if layer.node.op_type == "Gemm" else 1.0))

    # ---------------------------------------------------------------------------------------------------------- measuring

    def _damage(self, model: ir.Model, sites: Sequence[Site], context: Context) -> dict[Site, float]:
        """What a loss of 1 in a layer is to the model's outputs, from one setting in the middle."""
        assert context.data is not None, "a graded pass is not started without data"
        if not sites:
            return {}
        known = self._analysed(model, sites, context)
        middle = {site: site.settings[len(site.settings) // 2] for site in sites}
        options = {site.name: option_of(setting) for site, setting in middle.items()}
        candidate = models.clone(model)
        names = Names(candidate.graph)

        def write_one(layer: Layer, corrected: bool) -> Array | None:
            shift = self._shift(layer, options[layer.name], known)
            write(
                layer,
                options[layer.name],
                known.factored[layer.name].parts(options[layer.name]),
                shift if corrected else None,
                names,
            )
            return None if corrected else shift

        chosen = [layer for layer in layers(candidate) if layer.name in options]
        number = {layer.name: place for place, layer in enumerate(chosen)}
        which = switch.both(candidate, chosen, write_one, names)
        samples = min(_GRADED_ON, max(2, _GRADED_BYTES // max(1, weight_bytes(model))))
        with context.open_session(model) as before, context.open_session(candidate) as after:

            def open_with(site: Site, setting: Setting) -> Session:
                del setting
                return switch.Chosen(after, which, number[site.name])

            found = sensitivity.alone([*middle.items()], open_with, before, context.data, context.progress, samples)
        return {one.site: one.damage / max(known.factored[one.site.name].loss[option_of(one.setting)], 1e-9) for one in found}
