"""Chooses a setting for each site of a LossyPass.

``uniform``: every site the same distance from gentle to harsh. It yields plans from the harshest to the gentlest, so that the
first one that holds the budget is the one that gives most.

``frontier``: many settings a site, each graded by what it saves and what it does to the outputs. Plans from harsh to gentle
along the convex hull (Shoham and Gersho 1988): none saves more for the damage that it does. ``search.py`` finds how many of
their steps a budget allows.

``fastest``, ``within_budget``: each site changed or left alone. What pays by the clock first (``payoff.py``); then, if that
costs too much accuracy, the sites that do most damage for the time that they save go back, by a price on damage that is
raised until the budget holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .contracts import Grade, Plan, Progress, Setting, Site
from .payoff import Estimate, Times
from .search import first

Saving = Literal["macs", "bytes", "milliseconds"]
"""What a plan is to save: a field of ``Grade``."""
_TRIED = 4
"""Mixed plans that are timed at most, besides the one with every site."""
_CAUTIONS = (1.0, 3.0)
"""Factors on the cost of borders in the first plans that are cut: the runtime may lose more at a border than was measured."""
_PRICES = 200
"""Prices on damage, from one that takes hardly a site back to one that takes all."""
COARSE = 8
"""Plans, from harsh to gentle, that are evaluated before the last step between two of them is bisected."""
_NO_DAMAGE = 1e-30
_BEYOND = 1e3
"""A noise-to-signal ratio that stands for any larger one."""
_NOTHING = Grade(0.0)
_SPARED = 8
"""Steps of a plan that are tried to be taken back at most."""
TAKEN_BACK = "left alone: changing it costs more accuracy than the budget allows for the time that it saves"


def uniform(sites: Sequence[Site]) -> Iterator[Plan]:
    """Yield plans from harsh to gentle: in the k-th every site is k settings gentler than its harshest.

    A site that has no setting that gentle is left out of the plan (left alone); a plan with no sites is not yielded.
    """
    deepest = max((len(site.settings) for site in sites), default=0)
    for gentler in range(deepest):
        plan = {site: site.settings[-1 - gentler] for site in sites if gentler < len(site.settings)}
        if plan:
            yield plan


def harshest(sites: Iterable[Site]) -> Plan:
    """Every one of these sites at its harshest setting."""
    return {site: site.settings[-1] for site in sites}


def frontier(sites: Sequence[Site], grades: Mapping[tuple[Site, Setting], Grade], *savings: Saving) -> list[Plan]:
    """Plans from harsh to gentle, each a step less than the one before: the step that saves least for its damage.

    Several savings count alike, each as a part of what the harshest settings of all sites save.

    A site's settings that lie below the convex hull of (damage, saving) are never taken: another setting, or two mixed over
    the sites, save more for the same damage.
    """
    most = {of: sum(max(float(getattr(grades[site, s], of)) for s in site.settings) for site in sites) for of in savings}

    def saved(grade: Grade) -> float:
        return sum(float(getattr(grade, of)) / most[of] for of in savings if most[of] > 0)

    plans: list[Plan] = []
    plan: dict[Site, Setting] = {}
    for _, site, setting in steps(sites, grades, saved):
        plan = {**plan, site: setting}
        plans.append(plan)
    return plans[::-1]


def spared(
    plans: Sequence[Plan],
    chosen: int,
    grades: Mapping[tuple[Site, Setting], Grade],
    saving: Saving,
    spare: Callable[[Plan], float],
) -> Plan:
    """The chosen plan of ``frontier`` less what its goal can do without: the last step to it may have gone too far.

    Steps are taken back one by one; of those that fit into what is to spare, the one that does most damage goes first.

    Args:
        plans: From harsh to gentle.
        chosen: The gentlest that meets the goal.
        grades: Of all settings.
        saving: What the goal is of.
        spare: How much less a plan could save and still meet the goal; negative where it does not.
    """
    plan, rest = plans[chosen], spare(plans[chosen])
    refused: set[tuple[Site, Setting | None]] = set()
    for _ in range(_SPARED):
        fitting: dict[tuple[Site, Setting | None], float] = {}
        for site, setting in plan.items():
            way = [*dict.fromkeys([*(gentler.get(site) for gentler in plans[chosen:]), None])]
            back = way[way.index(setting) + 1]
            now, then = grades[site, setting], grades[site, back] if back else _NOTHING
            if now.damage > then.damage and getattr(now, saving) - getattr(then, saving) <= rest:
                fitting[site, back] = now.damage - then.damage
        if not (fitting := {step: damage for step, damage in fitting.items() if step not in refused}):
            break
        step = max(fitting, key=lambda one: fitting[one])
        gentler = {site: setting for site, setting in {**plan, **dict([step])}.items() if setting}
        if (left := spare(gentler)) < 0:
            refused.add(step)
        else:
            plan, rest = gentler, left
    return plan


def steps(
    sites: Sequence[Site], grades: Mapping[tuple[Site, Setting], Grade], worth: Callable[[Grade], float]
) -> list[tuple[float, Site, Setting]]:
    """The settings on each site's convex hull of (damage, worth), those first that give most for the damage that they add.

    Infinite damage is never done.
    """
    found: list[tuple[float, Site, Setting]] = []
    for site in sites:
        offered = [s for s in site.settings if grades[site, s].damage < math.inf]
        graded = [(max(grades[site, s].damage, 0.0), worth(grades[site, s]), s) for s in offered]
        found += [(slope, site, setting) for slope, setting in _hull(graded)]
    return sorted(found, key=lambda step: -step[0])  # stable: a site's own steps stay in order


def _hull(graded: Sequence[tuple[float, float, Setting]]) -> Iterator[tuple[float, Setting]]:
    """The settings on the upper convex hull from (0, 0), each with the saving per damage of the step that leads to it."""
    damage, saved = 0.0, 0.0
    left = list(graded)
    while left := [one for one in left if one[1] > saved]:
        slopes = [(gained - saved) / max(harm - damage, _NO_DAMAGE) for harm, gained, _ in left]
        best = max(range(len(left)), key=lambda i: (slopes[i], left[i][1]))
        damage, saved, setting = left[best]
        yield slopes[best], setting


@dataclass(frozen=True)
class Choice:
    """Which sites are changed, and for each other one why it is left alone."""

    sites: frozenset[Site]
    left: Mapping[Site, str]
    speedup: float | None = None
    """Of the plan against the model before, as timed; None when it was not."""


def fastest(
    estimate: Estimate,
    speedup: Callable[[frozenset[Site]], float],
    times: Callable[[frozenset[Site]], Times],
    progress: Progress,
) -> Choice:
    """The sites that make the model fastest, by the clock.

    Args:
        estimate: The sites' times; corrected in place by what is measured.
        speedup: Times the model with these sites changed against the model before.
        times: Profiles the model with these sites changed.
        progress: Told each plan that was timed.
    """
    everything = frozenset(estimate.sites)
    measured: dict[frozenset[Site], float] = {}
    with progress.stage("timing which sites pay", 1 + _TRIED) as step:

        def tried(plan: frozenset[Site]) -> bool:
            if not plan or plan in measured or len(measured) > _TRIED:
                return True
            measured[plan] = speedup(plan)
            step(1)
            return False

        tried(everything)
        for caution in _CAUTIONS:
            tried(estimate.cheapest(caution))
        while not tried(plan := _corrected(estimate, times, measured)):
            del plan
    best = max(measured, key=lambda plan: measured[plan])
    left = {site: _slower(site, estimate) for site in estimate.sites if site not in best}
    return Choice(best, left, measured[best])


def _corrected(
    estimate: Estimate, times: Callable[[frozenset[Site]], Times], measured: Mapping[frozenset[Site], float]
) -> frozenset[Site]:
    """The next plan, after a look into the fastest one so far."""
    best = max(measured, key=lambda plan: measured[plan])
    estimate.learn(best, times(best))
    return estimate.cheapest()


def _slower(site: Site, estimate: Estimate) -> str:
    alone, changed = estimate.alone[site], estimate.changed[site]
    if changed > alone:
        return f"slower when changed: {1000 * changed:.0f} us instead of {1000 * alone:.0f} us"
    return f"saves {1000 * (alone - changed):.0f} us, less than the conversions at its borders cost"


def within_budget(
    choice: Choice,
    estimate: Estimate,
    damage: Mapping[Site, float],
    over: Callable[[frozenset[Site]], str | None],
    progress: Progress,
) -> Choice | None:
    """The sites of ``choice`` that may stay changed so that the budget holds, saving as much as possible; None when none may.

    Args:
        choice: The sites that pay; together they cost too much accuracy.
        estimate: What each site saves.
        damage: What each site alone does to the outputs.
        over: Why the model with these sites changed is over the budget; None when it is not.
        progress: Told each plan that was evaluated.
    """
    paying = replace(
        estimate,
        sites=[site for site in estimate.sites if site in choice.sites],
        borders=[b for b in estimate.borders if {b.a, b.b} - {None} <= choice.sites],
        tied=[pair for pair in estimate.tied if choice.sites.issuperset(pair)],
    )
    ratios = [
        (paying.alone[site] - paying.changed[site]) / damage[site]
        for site in paying.sites
        if 0 < damage[site] < math.inf and paying.alone[site] > paying.changed[site]
    ]
    if not ratios:
        return None
    bounded = {site: min(damage[site], _BEYOND) for site in paying.sites}
    prices = np.geomspace(min(ratios) / 10, 10 * max(ratios), _PRICES)
    plans = [plan for plan in dict.fromkeys(paying.cheapest(damage=bounded, price=float(p)) for p in prices) if plan]
    plans = [plan for plan in plans if plan != choice.sites]
    with progress.stage("leaving sites alone until the budget holds", COARSE + math.ceil(math.log2(len(plans) + 1))) as step:

        def holds(index: int) -> bool:
            step(1)
            return over(plans[index]) is None

        chosen = first(len(plans), holds, COARSE) if plans else 0
    if chosen == len(plans):
        return None
    found = plans[chosen]
    return Choice(found, {**choice.left, **dict.fromkeys(choice.sites - found, TAKEN_BACK)})
