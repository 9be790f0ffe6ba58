"""Candidates of a lossy pass: the model with a plan for its sites, as a file that the target opens, written and judged.

    draft    good enough to be timed
    final    as it would be kept, checked, and compared with the original: how much of the budget it spends

Nothing is judged that could not be written. Which plans are built is decided elsewhere (``lossy.py``, ``joint.py``).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from . import allocate, model, payoff, sensitivity
from .contracts import Change, Context, LossyPass, NodeTime, Plan, Session, Setting, Site
from .evidence import Evidence
from .sensitivity import Sensitivity
from .stage import Outcome, Stage
from .trial import Trial

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
"""Operators that turn numbers of one type into another."""


@dataclass(frozen=True)
class Built:
    """The model with a plan, as it would be kept; it was written and judged."""

    plan: Plan
    model: ir.Model
    changes: Sequence[Change]
    spent: float
    """The part of the budget."""
    problem: str | None


@dataclass
class Work:
    """One pass on one model: builds candidates and judges them."""

    trial: Trial
    evidence: Evidence
    rewrite: LossyPass
    before: Stage
    path: Path
    context: Context
    sites: Sequence[Site]
    declined: Sequence[Change]
    offered: int
    share: float
    """The part of the budget that may be spent up to this pass."""
    whole: Stage
    """The model before the pass, which goals are parts of; another one than ``before`` from the second round on."""

    @classmethod
    def begin(
        cls,
        trial: Trial,
        rewrite: LossyPass,
        before: Stage,
        path: Path,
        context: Context,
        share: float = 1.0,
        whole: Stage | None = None,
    ) -> Work:
        """List the sites that may be changed: those that the pass offers with settings and the user does not exclude."""
        assert trial.evidence is not None, "a recipe with a lossy pass is not started without data"
        before = _named(before, path.with_name("before") / path.name, trial.external_data)
        offered = rewrite.sites(before.model, context)
        sites = [s for s in offered if s.settings and not any(fnmatch.fnmatchcase(s.name, g) for g in context.exclude)]
        declined = [Change(s.name, "left alone", s.why or "excluded", done=False) for s in offered if s not in sites]
        return cls(trial, trial.evidence, rewrite, before, path, context, sites, declined, len(offered), share, whole or before)

    def nothing(self) -> Outcome:
        """There is no site."""
        reasons = sorted({change.why for change in self.declined})
        why = f"nothing to change: 0 of {self.offered} sites can be treated"
        return Outcome(True, f"{why} ({'; '.join(reasons[:3])})" if reasons else why, self.declined)

    def planned(self, wanted: Mapping[str, str]) -> Outcome:
        """Change the sites that are named, to the settings with these labels, whatever it costs."""
        plan = {site: one for site in self.sites for one in site.settings if wanted.get(site.name) == one.label}
        if not plan:
            return Outcome(True, "nothing to change: other passes have changed what was planned", self.declined)
        candidate = model.clone(self.before.model)
        changes = self.rewrite.apply(candidate, plan, self.context)
        if (problem := self.trial.write(self.before, candidate, self.path)) is not None:
            return Outcome(False, problem, self.declined)
        return self.kept(Built(plan, candidate, changes, 0.0, None))

    def times_changed(self, sites: Sequence[Site]) -> list[NodeTime] | None:
        """Time of each node of the model before when these sites are changed; None where the target cannot run that."""
        candidate = self.draft(allocate.harshest(sites))
        if self.evidence.refused(self.path) is not None:
            return None
        nodes = [Site(node.name or "", node.op_type, (), nodes=(node.name or "",)) for node in self.before.model.graph]
        found = payoff.attribute(self.evidence.profile(self.path), candidate, nodes)
        return [NodeTime(node.name, node.op_type, "", spent, node.name) for node, spent in found.sites.items()]

    def draft(self, plan: Plan) -> ir.Model:
        """The model with the plan, written to ``path`` in a form that is good enough to be timed."""
        candidate = model.clone(self.before.model)
        self.rewrite.apply(candidate, plan, replace(self.context, draft=True))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        model.save(candidate, self.path, self.trial.external_data, durable=False)
        return candidate

    def final(self, plan: Plan) -> Built:
        """The model with the plan, as it would be kept, written and judged."""
        candidate = model.clone(self.before.model)
        changes = self.rewrite.apply(candidate, plan, self.context)
        share = self.share if self.rewrite.decided() else self.share * self.context.part
        spent, problem = math.inf, self.trial.write(self.before, candidate, self.path)
        if problem is None:
            spent, problem = self.evidence.spent(self.path, share)
        return Built(plan, candidate, changes, spent, problem)

    def kept(
        self,
        built: Built,
        tried: Sequence[str] = (),
        left: Sequence[Change] = (),
        ranking: Sequence[Sensitivity] = (),
    ) -> Outcome:
        """The outcome of the model that is kept; it lies at ``path``.

        Args:
            built: As ``final`` gave it, without a problem.
            tried: Harsher choices that did not, each with its problem.
            left: The sites that the choice leaves alone.
            ranking: What sites do alone, where that was measured.
        """
        integers, floating = self._integers(built.plan, built.model)
        done = [f"{len(built.plan)} of {self.offered} sites", *([integers] if integers else []), "within the budget"]
        why = "; ".join([", ".join(done), *(f"not {t}" for t in tried)])
        said = [*built.changes, *left, *floating, *self.declined]
        return Outcome(True, why, said, built.model, self.path, ranking, self.rewrite.figures(built.plan))

    def _integers(self, plan: Plan, candidate: ir.Model) -> tuple[str, list[Change]]:
        """How many sites the runtime computes in integers, in words; the planned ones that it does not, and each conversion."""
        profile = self.evidence.profile(self.path)
        if not any(kernel.integer for kernel in profile):
            return "", []
        found = payoff.attribute(profile, candidate, self.sites)
        floating = [site for site in plan if site in found.sites and site not in found.integer]
        staying = [kernel for kernel in profile if kernel.op_type in _CONVERSIONS]
        spent = sum(kernel.milliseconds for kernel in staying)
        said = f"{len(found.integer)} as integer kernels, {len(staying)} conversions stay ({1000 * spent:.0f} us)"
        why = "the runtime made no integer kernel of it"
        left = [Change(site.name, "computed in float all the same", why, done=False) for site in floating]
        for kernel in staying:
            cost = f"between integers and floats: {1000 * kernel.milliseconds:.0f} us"
            left.append(Change(kernel.origin or kernel.name, f"{kernel.op_type} stays", cost, done=False))
        return said, left

    @property
    def timed(self) -> bool:
        """Whether time is what counts, and may be measured."""
        return self.trial.timing and self.trial.goal == "latency"

    def ranking(self, samples: int = sensitivity.SAMPLES, sites: Iterable[Site] | None = None) -> list[Sensitivity]:
        """Every one of these sites (default: all) by what it does alone, on so many samples; the most sensitive first."""

        def open_with(site: Site, setting: Setting) -> Session:
            self.draft({site: setting})
            return self.evidence.open_between(self.path)

        with self.evidence.open_between(self.before.path) as session:
            settings = [*allocate.harshest(self.sites if sites is None else sites).items()]
            return sensitivity.alone(settings, open_with, session, self.evidence.data, self.context.progress, samples)


def _named(stage: Stage, path: Path, external_data: model.ExternalData) -> Stage:
    """The stage with a name for each node, which measured times are attributed by; written to ``path`` if one had none."""
    if all(node.name for node in stage.model.graph.all_nodes()):
        return stage
    named = model.clone(stage.model)
    taken = {node.name for node in named.graph.all_nodes()}
    for number, node in enumerate(named.graph.all_nodes()):
        if not node.name:
            wanted = next((output.name for output in node.outputs if output.name), node.op_type)
            node.name = wanted if wanted not in taken else f"{wanted}_{number}"
            taken.add(node.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return replace(stage, model=named, path=model.save(named, path, external_data).path)
