"""A lossy pass on trial: a plan for its sites is chosen that pays and holds the budget, or the pass is undone.

A pass whose sites go together backs off from harsh settings to gentle ones until the budget holds. One whose sites are chosen
for themselves (``per_site``) is built with all of them, and with none; where that helps, each site is decided by measurement
(``allocate.py``). Every candidate is a file that the target opens: nothing is judged that could not be written.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from . import allocate, cost, model, payoff, sensitivity
from .contracts import Change, Context, Goal, Grade, LossyPass, NodeTime, Plan, Remains, Session, Setting, Site
from .errors import ModelError
from .evidence import Evidence, Unusable
from .graphs import constant
from .sensitivity import Sensitivity
from .stage import Outcome, Stage
from .trial import Trial

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
"""Operators that turn numbers of one type into another."""
_SAVED_BY: Mapping[str, allocate.Saving] = {"macs": "macs", "bytes": "bytes", "latency": "milliseconds"}


def attempt(trial: Trial, rewrite: LossyPass, before: Stage, path: Path, context: Context, share: float = 1.0) -> Outcome:
    """Find a plan for the sites that the pass offers; the model that is kept is written to ``path``."""
    if rewrite.graded:
        return _in_rounds(trial, rewrite, before, path, context, share)
    work = Work.begin(trial, rewrite, before, path, context, share)
    if not work.sites:
        return work.nothing()
    return work.by_site() if rewrite.per_site else work.together()


def _in_rounds(trial: Trial, rewrite: LossyPass, before: Stage, path: Path, context: Context, share: float) -> Outcome:
    """A graded pass: as many rounds as it asks for, each a part of the way further to its goal."""
    count, stated = rewrite.rounds(), rewrite.remains() is not None
    stage, last, changes = before, None, []
    for number in range(1, count + 1):
        place = path if number == count else path.with_name(f"round-{number}") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Work.begin(trial, rewrite, stage, place, replace(context, part=number / count), share, before)
        outcome = work.graded() if work.sites else work.nothing()
        if outcome.model is None or outcome.path is None:
            if number > 1 and stated:
                return Outcome(False, f"in round {number} of {count}: {outcome.why}", outcome.changes)
            if stated or (number == count and last is None):
                return outcome
            continue
        last, graph = outcome, outcome.model
        done = [replace(one, what=f"round {number}: {one.what}") if count > 1 else one for one in outcome.changes if one.done]
        changes += done
        stage = Stage(graph, outcome.path, model.count_nodes(graph), model.file_bytes(outcome.path), None, True)
    assert last is not None, "no round without an outcome"
    declined = [one for one in last.changes if not one.done]
    return replace(last, changes=[*changes, *declined])


@dataclass(frozen=True)
class _Built:
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
        return self._kept(_Built(plan, candidate, changes, 0.0, None))

    def times_changed(self, sites: Sequence[Site]) -> list[NodeTime] | None:
        """Time of each node of the model before when these sites are changed; None where the target cannot run that."""
        candidate = self._draft(allocate.harshest(sites))
        if self.evidence.refused(self.path) is not None:
            return None
        nodes = [Site(node.name or "", node.op_type, (), nodes=(node.name or "",)) for node in self.before.model.graph]
        found = payoff.attribute(self.evidence.profile(self.path), candidate, nodes)
        return [NodeTime(node.name, node.op_type, "", spent, node.name) for node, spent in found.sites.items()]

    def together(self) -> Outcome:
        """Try plans from harsh to gentle; the first that holds the budget is kept."""
        tried: list[str] = []
        for plan in allocate.uniform(self.sites):
            built = self._final(plan)
            if built.problem is None:
                return self._kept(built, tried)
            labels = sorted({setting.label for setting in plan.values()})
            tried.append(f"{', '.join(labels)}: {built.problem}")
        return Outcome(False, f"no setting holds the budget: {'; '.join(tried)}", self.declined)

    def graded(self) -> Outcome:
        """Choose among many settings a site: as harsh as the budget allows, or as gentle as the user's goal allows."""
        progress = self.context.progress
        with progress.stage("grading sites"):
            grades = self.rewrite.grades(self.before.model, self.sites, self.context)
        remains = self.rewrite.remains()
        if remains is not None:
            remains = replace(remains, part=remains.part**self.context.part)
        saving = _SAVED_BY[remains.of] if remains else _SAVED_BY["latency" if self._timed else "bytes"]
        plans = allocate.frontier(self.sites, grades, saving)
        if remains is not None and saving == "macs" and self._timed and plans:
            faster = allocate.frontier(self.sites, grades, "macs", "milliseconds")
            if self._part(faster[0], "macs") <= remains.part:  # MACs that take time go first, if they suffice
                plans = faster
        if remains is None and self.rewrite.decided():  # the user has said how much goes at every site, whether it pays or not
            bearable = [site for site in self.sites if grades[site, site.settings[-1]].damage < math.inf]
            plans = [allocate.harshest(bearable), *plans] if bearable else plans
        if not plans:
            told = self.rewrite.apply(model.clone(self.before.model), {}, replace(self.context, draft=True))
            why = f"nothing to change: no setting of {len(self.sites)} sites that does bearable damage saves {saving}"
            return Outcome(True, why, [*told, *self.declined])
        tried: list[str] = []
        with progress.stage("choosing settings") as step:
            if remains is None:
                built = self._in_budget(plans[::-1], grades, tried, step)
            else:
                plan = self._at_goal(plans, grades, remains, step)
                built = plan if isinstance(plan, str) else self._final(plan)
        if isinstance(built, str):
            return Outcome(False, built, self.declined)
        if built.problem is not None:
            return Outcome(False, built.problem, self.declined)
        left = [
            Change(site.name, "left alone", self._outdone(site, grades), done=False)
            for site in self.sites
            if site not in built.plan
        ]
        return self._kept(built, tried, left)

    def _outdone(self, site: Site, grades: Mapping[tuple[Site, Setting], Grade]) -> str:
        """Why a site that could be changed is not."""
        gentlest = site.settings[0]
        grade = grades[site, gentlest]
        saved = [f"{grade.macs / 1e6:.3g} M MACs", f"{grade.bytes / 1e3:.3g} kB"]
        saved += [f"{1e3 * grade.milliseconds:.3g} us"] if self._timed else []
        does = f"{gentlest.label} would do {grade.damage:.1e} to save {', '.join(saved)}"
        return f"others save more for the damage that they do: {does}"

    def _in_budget(
        self,
        plans: Sequence[Plan],
        grades: Mapping[tuple[Site, Setting], Grade],
        tried: list[str],
        step: Callable[[int], None],
    ) -> _Built | str:
        """The harshest of these plans, from gentle to harsh, that holds the budget; or why there is none.

        ``tried`` is told the problem of the next harsher one that was built.

        What is not faster by the clock is not tried: each may be a model whose layers are fitted.
        """
        held: dict[int, _Built] = {}
        problems: dict[int, str] = {}

        def spent(count: int) -> float:
            built = self._final(plans[count - 1])
            if built.problem is None:
                held.clear()
                held[count] = built
            else:
                problems[count] = built.problem
            step(1)
            return built.spent

        least, everything = 0, len(plans)
        decided = self.rewrite.decided()
        if self._timed and not decided and not (least := self._least_that_pays(plans, grades)):
            return f"not faster than before, in none of {everything} plans for up to {len(plans[-1])} sites"
        if not (decided and spent(everything) <= 1):  # what the user asks for is tried as it is, whether it pays or not
            damage = [sum(max(grades[one].damage, 0.0) for one in plan.items()) for plan in plans]
            allocate.harshest_within(damage, spent, least)
        if not held:
            which = "setting that pays" if least else "setting"
            return f"no {which} holds the budget; the gentlest that was tried: {problems[min(problems)]}"
        (chosen, built), *_ = held.items()
        if harsher := [count for count in problems if count > chosen]:
            tried.append(f"the next harsher choice, of {len(plans[min(harsher) - 1])} sites: {problems[min(harsher)]}")
        self.trial.write(self.before, built.model, self.path)
        return built

    def _least_that_pays(self, plans: Sequence[Plan], grades: Mapping[tuple[Site, Setting], Grade]) -> int:
        whole = sum(kernel.milliseconds for kernel in self.evidence.profile(self.before.path))
        saved = [sum(grades[one].milliseconds for one in plan.items()) for plan in plans]

        def pays(count: int) -> bool:
            self._draft(plans[count - 1])
            return self.evidence.speedup(self.before.path, self.path, allocate.WORTH) >= allocate.WORTH

        with self.context.progress.stage("timing what pays"):
            return allocate.least_that_pays(saved, whole, pays)

    def _at_goal(
        self, plans: Sequence[Plan], grades: Mapping[tuple[Site, Setting], Grade], goal: Remains, step: Callable[[int], None]
    ) -> Plan | str:
        """The gentlest plan that meets the goal, less what it can do without; or why there is none."""

        def too_gentle(index: int) -> bool:
            step(1)
            return self._part(plans[index], goal.of) > goal.part

        chosen = allocate.first(len(plans), too_gentle) - 1
        if chosen < 0:
            part = self._part(plans[0], goal.of)
            return f"{part:.3f} of the {goal.of} remain at the harshest, more than {goal.part:g}"
        if goal.of == "latency":  # known to a few percent: nothing that small can be spared
            return plans[chosen]
        most = goal.part * self._whole(goal.of)
        return allocate.spared(plans, chosen, grades, goal.of, lambda plan: most - self._amount(plan, goal.of))

    def _part(self, plan: Plan, of: Goal) -> float:
        """What remains of the whole model with this plan."""
        if of == "latency":
            self._draft(plan)
            return 1 / self.evidence.speedup(self.whole.path, self.path)
        return self._amount(plan, of) / self._whole(of)

    def _amount(self, plan: Plan, of: Goal) -> int:
        """MACs or bytes with this plan."""
        candidate = self._draft(plan)
        return self._macs(candidate) if of == "macs" else model.file_bytes(self.path)

    def _whole(self, of: Goal) -> int:
        """MACs or bytes of the whole model."""
        return self._macs(self.whole.model) if of == "macs" else self.whole.bytes

    def _macs(self, graph: ir.Model) -> int:
        macs = cost.total_macs(graph, cost.dims_as_fed(self.whole.model, self.evidence.data))
        if macs is None:
            raise ModelError(
                "the model's MACs are not known", hint="Fix its dynamic dimensions with --set shapes.fix.NAME=SIZE."
            )
        return macs

    @property
    def _timed(self) -> bool:
        return self.trial.timing and self.trial.goal == "latency"

    def ranking(self, samples: int = sensitivity.SAMPLES) -> list[Sensitivity]:
        """Every site by what it does alone, on so many samples; the most sensitive first."""
        return self._ranking(frozenset(self.sites), samples)

    def by_site(self) -> Outcome:
        """Decide each site for itself: first what pays, then what the budget allows."""
        try:
            estimate, choice = self._what_pays()
        except Unusable as error:
            return Outcome(False, str(error), self.declined)
        left = [Change(site.name, "left alone", why, done=False) for site, why in choice.left.items()]
        if choice.speedup is not None and choice.speedup < allocate.WORTH:
            tried = f"at best {choice.speedup:.2f}× as fast, with {len(choice.sites)} of {len(self.sites)} sites"
            why = f"not faster than before wherever it was tried: {tried} (--goal size asks for bytes alone)"
            return Outcome(False, why, [*left, *self.declined])
        plan = allocate.harshest(choice.sites)
        built = self._final(plan)
        if built.problem is None:
            return self._kept(built, left=left)
        ranking = self._ranking(choice.sites)
        damage = {one.site: one.damage for one in ranking}
        found = allocate.within_budget(choice, estimate, damage, self._over, self.context.progress)
        if found is None:
            why = f"no choice of sites holds the budget; all {len(plan)} that pay: {built.problem}"
            return Outcome(False, why, [*left, *self.declined], sensitivities=ranking)
        chosen = self._final(allocate.harshest(found.sites))
        if chosen.problem is not None:
            return Outcome(False, chosen.problem, [*left, *self.declined], sensitivities=ranking)
        left = [Change(site.name, "left alone", why, done=False) for site, why in found.left.items()]
        return self._kept(chosen, [f"all that pay: {built.problem}"], left, ranking)

    # ----------------------------------------------------------------------------------------------------------- candidates

    def _final(self, plan: Plan) -> _Built:
        """The model with the plan, as it would be kept, written and judged."""
        candidate = model.clone(self.before.model)
        changes = self.rewrite.apply(candidate, plan, self.context)
        share = self.share if self.rewrite.decided() else self.share * self.context.part
        spent, problem = math.inf, self.trial.write(self.before, candidate, self.path)
        if problem is None:
            spent, problem = self.evidence.spent(self.path, share)
        return _Built(plan, candidate, changes, spent, problem)

    def _over(self, chosen: frozenset[Site]) -> str | None:
        return self._final(allocate.harshest(chosen)).problem

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

    def _kept(
        self,
        built: _Built,
        tried: Sequence[str] = (),
        left: Sequence[Change] = (),
        ranking: Sequence[Sensitivity] = (),
    ) -> Outcome:
        integers, floating = self._integers(built.plan, built.model)
        done = [f"{len(built.plan)} of {self.offered} sites", *([integers] if integers else []), "within the budget"]
        why = "; ".join([", ".join(done), *(f"not {t}" for t in tried)])
        said = [*built.changes, *left, *floating, *self.declined]
        return Outcome(True, why, said, built.model, self.path, ranking, self.rewrite.figures(built.plan))

    def _draft(self, plan: Plan) -> ir.Model:
        """The model with the plan, written to ``path`` in a form that is good enough to be timed."""
        candidate = model.clone(self.before.model)
        self.rewrite.apply(candidate, plan, replace(self.context, draft=True))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        model.save(candidate, self.path, self.trial.external_data, durable=False)
        return candidate

    # ------------------------------------------------------------------------------------------------------------- measuring

    def _what_pays(self) -> tuple[payoff.Estimate, allocate.Choice]:
        """The sites that make the model faster (or smaller), and what is known of the times of all.

        Raises:
            Unusable: The target cannot run the model with every site changed.
        """
        everything = frozenset(self.sites)
        if not self._timed:
            size = {site: float(_weight_bytes(self.before.model, site)) for site in self.sites}
            smaller = {site: bytes_ / 4 for site, bytes_ in size.items()}
            return payoff.Estimate(self.sites, (), size, smaller, 0.0), allocate.Choice(everything, {})
        with self.context.progress.stage("profiling with every site and with none"):
            changed = self._draft(allocate.harshest(everything))
            if (problem := self.evidence.refused(self.path)) is not None:
                raise Unusable(problem)
            estimate = payoff.Estimate.of(
                self.sites,
                self.rewrite.borders(self.before.model, self.sites),
                payoff.attribute(self.evidence.profile(self.before.path), self.before.model, self.sites),
                payoff.attribute(self.evidence.profile(self.path), changed, self.sites),
            )
        return estimate, allocate.fastest(estimate, self._speedup, self._times, self.context.progress)

    def _speedup(self, chosen: frozenset[Site]) -> float:
        self._draft(allocate.harshest(chosen))
        return self.evidence.speedup(self.before.path, self.path)

    def _times(self, chosen: frozenset[Site]) -> payoff.Times:
        candidate = self._draft(allocate.harshest(chosen))
        return payoff.attribute(self.evidence.profile(self.path), candidate, self.sites)

    def _ranking(self, chosen: frozenset[Site], samples: int = sensitivity.SAMPLES) -> list[Sensitivity]:
        def open_with(site: Site, setting: Setting) -> Session:
            self._draft({site: setting})
            return self.evidence.open_between(self.path)

        with self.evidence.open_between(self.before.path) as session:
            settings = [*allocate.harshest(chosen).items()]
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


def _weight_bytes(graph: ir.Model, site: Site) -> int:
    """Bytes of the constants that the site's nodes read."""
    nodes = [node for node in graph.graph.all_nodes() if node.name in site.nodes]
    tensors = [tensor for node in nodes for value in node.inputs if (tensor := constant(value)) is not None]
    return sum(tensor.nbytes for tensor in tensors)
