"""A lossy pass on trial: a plan for its sites is chosen that pays and holds the budget, or the pass is undone.

    together    all sites alike, from harsh settings to gentler ones until the budget holds
    graded      each setting with the damage that it does and what it saves: of the plans that save most for their damage, the
                harshest that the budget allows, or the gentlest that meets the user's goal; in rounds, as the pass asks for
    by site     with all sites, and with none; where that helps, each is decided by measurement (``allocate.py``)

Every candidate is built and judged by ``candidates.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from . import allocate, cost, model, payoff, search
from .candidates import Built, Work
from .contracts import Change, Context, Goal, Grade, LossyPass, Plan, Remains, Setting, Site
from .errors import ModelError
from .evidence import UnusableError
from .graphs import constant
from .stage import Outcome, Stage
from .trial import Trial

_Grades = Mapping[tuple[Site, Setting], Grade]
_SAVED_BY: Mapping[str, allocate.Saving] = {"macs": "macs", "bytes": "bytes", "latency": "milliseconds"}


def attempt(trial: Trial, rewrite: LossyPass, before: Stage, path: Path, context: Context, share: float = 1.0) -> Outcome:
    """Find a plan for the sites that the pass offers; the model that is kept is written to ``path``."""
    if rewrite.graded:
        return _in_rounds(trial, rewrite, before, path, context, share)
    work = Work.begin(trial, rewrite, before, path, context, share)
    if not work.sites:
        return work.nothing()
    return _by_site(work) if rewrite.per_site else _together(work)


def _in_rounds(trial: Trial, rewrite: LossyPass, before: Stage, path: Path, context: Context, share: float) -> Outcome:
    """A graded pass: as many rounds as it asks for, each a part of the way further to its goal."""
    count, stated = rewrite.rounds(), rewrite.remains() is not None
    stage, last, changes = before, None, []
    for number in range(1, count + 1):
        place = path if number == count else path.with_name(f"round-{number}") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Work.begin(trial, rewrite, stage, place, replace(context, part=number / count), share, before)
        outcome = _graded(work) if work.sites else work.nothing()
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


def _together(work: Work) -> Outcome:
    """Try plans from harsh to gentle; the first that holds the budget is kept."""
    tried: list[str] = []
    for plan in allocate.uniform(work.sites):
        built = work.final(plan)
        if built.problem is None:
            return work.kept(built, tried)
        labels = sorted({setting.label for setting in plan.values()})
        tried.append(f"{', '.join(labels)}: {built.problem}")
    return Outcome(False, f"no setting holds the budget: {'; '.join(tried)}", work.declined)


def _graded(work: Work) -> Outcome:
    """Choose among many settings a site: as harsh as the budget allows, or as gentle as the user's goal allows."""
    progress = work.context.progress
    with progress.stage("grading sites"):
        grades = work.rewrite.grades(work.before.model, work.sites, work.context)
    remains = work.rewrite.remains()
    if remains is not None:
        remains = replace(remains, part=remains.part**work.context.part)
    saving = _SAVED_BY[remains.of] if remains else _SAVED_BY["latency" if work.timed else "bytes"]
    plans = allocate.frontier(work.sites, grades, saving)
    if remains is not None and saving == "macs" and work.timed and plans:
        faster = allocate.frontier(work.sites, grades, "macs", "milliseconds")
        if _part(work, faster[0], "macs") <= remains.part:  # MACs that take time go first, if they suffice
            plans = faster
    if remains is None and work.rewrite.decided():  # the user has said how much goes at every site, whether it pays or not
        bearable = [site for site in work.sites if grades[site, site.settings[-1]].damage < math.inf]
        plans = [allocate.harshest(bearable), *plans] if bearable else plans
    if not plans:
        told = work.rewrite.apply(model.clone(work.before.model), {}, replace(work.context, draft=True))
        why = f"nothing to change: no setting of {len(work.sites)} sites that does bearable damage saves {saving}"
        return Outcome(True, why, [*told, *work.declined])
    tried: list[str] = []
    with progress.stage("choosing settings") as step:
        if remains is None:
            built = _in_budget(work, plans[::-1], grades, tried, step)
        else:
            plan = _at_goal(work, plans, grades, remains, step)
            built = plan if isinstance(plan, str) else work.final(plan)
    if isinstance(built, str):
        return Outcome(False, built, work.declined)
    if built.problem is not None:
        return Outcome(False, built.problem, work.declined)
    left = [
        Change(site.name, "left alone", _outdone(work, site, grades), done=False)
        for site in work.sites
        if site not in built.plan
    ]
    return work.kept(built, tried, left)


def _outdone(work: Work, site: Site, grades: _Grades) -> str:
    """Why a site that could be changed is not."""
    gentlest = site.settings[0]
    grade = grades[site, gentlest]
    saved = [f"{grade.macs / 1e6:.3g} M MACs", f"{grade.bytes / 1e3:.3g} kB"]
    saved += [f"{1e3 * grade.milliseconds:.3g} us"] if work.timed else []
    does = f"{gentlest.label} would do {grade.damage:.1e} to save {', '.join(saved)}"
    return f"others save more for the damage that they do: {does}"


def _in_budget(
    work: Work,
    plans: Sequence[Plan],
    grades: _Grades,
    tried: list[str],
    step: Callable[[int], None],
) -> Built | str:
    """The harshest of these plans, from gentle to harsh, that holds the budget; or why there is none.

    ``tried`` is told the problem of the next harsher one that was built.

    What is not faster by the clock is not tried: each may be a model whose layers are fitted.
    """
    held: dict[int, Built] = {}
    problems: dict[int, str] = {}

    def spent(count: int) -> float:
        built = work.final(plans[count - 1])
        if built.problem is None:
            held.clear()
            held[count] = built
        else:
            problems[count] = built.problem
        step(1)
        return built.spent

    least, everything = 0, len(plans)
    decided = work.rewrite.decided()
    if work.timed and not decided and not (least := _least_that_pays(work, plans, grades)):
        return f"not faster than before, in none of {everything} plans for up to {len(plans[-1])} sites"
    if not (decided and spent(everything) <= 1):  # what the user asks for is tried as it is, whether it pays or not
        damage = [sum(max(grades[one].damage, 0.0) for one in plan.items()) for plan in plans]
        search.harshest_within(damage, spent, least)
    if not held:
        which = "setting that pays" if least else "setting"
        return f"no {which} holds the budget; the gentlest that was tried: {problems[min(problems)]}"
    (chosen, built), *_ = held.items()
    if harsher := [count for count in problems if count > chosen]:
        tried.append(f"the next harsher choice, of {len(plans[min(harsher) - 1])} sites: {problems[min(harsher)]}")
    work.trial.write(work.before, built.model, work.path)
    return built


def _least_that_pays(work: Work, plans: Sequence[Plan], grades: _Grades) -> int:
    whole = sum(kernel.milliseconds for kernel in work.evidence.profile(work.before.path))
    saved = [sum(grades[one].milliseconds for one in plan.items()) for plan in plans]

    def pays(count: int) -> bool:
        work.draft(plans[count - 1])
        return work.evidence.speedup(work.before.path, work.path, search.WORTH) >= search.WORTH

    with work.context.progress.stage("timing what pays"):
        return search.least_that_pays(saved, whole, pays)


def _at_goal(work: Work, plans: Sequence[Plan], grades: _Grades, goal: Remains, step: Callable[[int], None]) -> Plan | str:
    """The gentlest plan that meets the goal, less what it can do without; or why there is none."""

    def too_gentle(index: int) -> bool:
        step(1)
        return _part(work, plans[index], goal.of) > goal.part

    chosen = search.first(len(plans), too_gentle) - 1
    if chosen < 0:
        part = _part(work, plans[0], goal.of)
        return f"{part:.3f} of the {goal.of} remain at the harshest, more than {goal.part:g}"
    if goal.of == "latency":  # known to a few percent: nothing that small can be spared
        return plans[chosen]
    most = goal.part * _whole(work, goal.of)
    return allocate.spared(plans, chosen, grades, goal.of, lambda plan: most - _amount(work, plan, goal.of))


def _part(work: Work, plan: Plan, of: Goal) -> float:
    """What remains of the whole model with this plan."""
    if of == "latency":
        work.draft(plan)
        return 1 / work.evidence.speedup(work.whole.path, work.path)
    return _amount(work, plan, of) / _whole(work, of)


def _amount(work: Work, plan: Plan, of: Goal) -> int:
    """MACs or bytes with this plan."""
    candidate = work.draft(plan)
    return _macs(work, candidate) if of == "macs" else model.file_bytes(work.path)


def _whole(work: Work, of: Goal) -> int:
    """MACs or bytes of the whole model."""
    return _macs(work, work.whole.model) if of == "macs" else work.whole.bytes


def _macs(work: Work, graph: ir.Model) -> int:
    macs = cost.total_macs(graph, cost.dims_as_fed(work.whole.model, work.evidence.data))
    if macs is None:
        raise ModelError("the model's MACs are not known", hint="Fix its dynamic dimensions with --set shapes.fix.NAME=SIZE.")
    return macs


def _by_site(work: Work) -> Outcome:
    """Decide each site for itself: first what pays, then what the budget allows."""
    try:
        estimate, choice = _what_pays(work)
    except UnusableError as error:
        return Outcome(False, str(error), work.declined)
    left = [Change(site.name, "left alone", why, done=False) for site, why in choice.left.items()]
    if choice.speedup is not None and choice.speedup < search.WORTH:
        tried = f"at best {choice.speedup:.2f}× as fast, with {len(choice.sites)} of {len(work.sites)} sites"
        why = f"not faster than before wherever it was tried: {tried} (--goal size asks for bytes alone)"
        return Outcome(False, why, [*left, *work.declined])
    plan = allocate.harshest(choice.sites)
    built = work.final(plan)
    if built.problem is None:
        return work.kept(built, left=left)
    ranking = work.ranking(sites=choice.sites)
    damage = {one.site: one.damage for one in ranking}
    found = allocate.within_budget(choice, estimate, damage, partial(_over, work), work.context.progress)
    if found is None:
        why = f"no choice of sites holds the budget; all {len(plan)} that pay: {built.problem}"
        return Outcome(False, why, [*left, *work.declined], sensitivities=ranking)
    chosen = work.final(allocate.harshest(found.sites))
    if chosen.problem is not None:
        return Outcome(False, chosen.problem, [*left, *work.declined], sensitivities=ranking)
    left = [Change(site.name, "left alone", why, done=False) for site, why in found.left.items()]
    return work.kept(chosen, [f"all that pay: {built.problem}"], left, ranking)


def _what_pays(work: Work) -> tuple[payoff.Estimate, allocate.Choice]:
    """The sites that make the model faster (or smaller), and what is known of the times of all.

    Raises:
        UnusableError: The target cannot run the model with every site changed.
    """
    everything = frozenset(work.sites)
    if not work.timed:
        size = {site: float(_weight_bytes(work.before.model, site)) for site in work.sites}
        smaller = {site: bytes_ / 4 for site, bytes_ in size.items()}
        return payoff.Estimate(work.sites, (), size, smaller, 0.0), allocate.Choice(everything, {})
    with work.context.progress.stage("profiling with every site and with none"):
        changed = work.draft(allocate.harshest(everything))
        if (problem := work.evidence.refused(work.path)) is not None:
            raise UnusableError(problem)
        estimate = payoff.Estimate.of(
            work.sites,
            work.rewrite.borders(work.before.model, work.sites),
            payoff.attribute(work.evidence.profile(work.before.path), work.before.model, work.sites),
            payoff.attribute(work.evidence.profile(work.path), changed, work.sites),
        )
    return estimate, allocate.fastest(estimate, partial(_speedup, work), partial(_times, work), work.context.progress)


def _speedup(work: Work, chosen: frozenset[Site]) -> float:
    work.draft(allocate.harshest(chosen))
    return work.evidence.speedup(work.before.path, work.path)


def _times(work: Work, chosen: frozenset[Site]) -> payoff.Times:
    candidate = work.draft(allocate.harshest(chosen))
    return payoff.attribute(work.evidence.profile(work.path), candidate, work.sites)


def _over(work: Work, chosen: frozenset[Site]) -> str | None:
    return work.final(allocate.harshest(chosen)).problem


def _weight_bytes(graph: ir.Model, site: Site) -> int:
    """Bytes of the constants that the site's nodes read."""
    nodes = [node for node in graph.graph.all_nodes() if node.name in site.nodes]
    tensors = [tensor for node in nodes for value in node.inputs if (tensor := constant(value)) is not None]
    return sum(tensor.nbytes for tensor in tensors)
