"""Which sites pay, by measurement: the choice between leaving a site alone and changing it, for each site of a LossyPass.

    time(plan) = sum of the sites' own times, each as it is in the plan
               + rate * elements of every value that passes between a changed site and one that is not

Two profiles give each site's time alone and changed; what belongs to no site in the second one, per converted element,
gives the rate. The plan that minimizes the sum is a minimum cut (``mincut.py``). It is built, timed against the model
before, and profiled again: runtimes fuse and lay out a mixed model in ways that no sum foretells, so the times are
corrected by what was measured and the next plan is cut, until a plan comes back that was timed already. The fastest by
the clock wins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from .contracts import Border, NodeTime, Site
from .mincut import cheapest_labels

_LEAST_RATE = 2e-7
"""Milliseconds per converted element at least: reading and writing it costs that much on any processor."""


@dataclass(frozen=True)
class Times:
    """A profile in terms of sites, in milliseconds. A site without a kernel is left out: another one holds its work."""

    sites: Mapping[Site, float]
    rest: float
    """Time of the kernels that belong to no site."""
    integer: frozenset[Site] = frozenset()
    """Sites with a kernel that computes in integers."""


def attribute(profile: Sequence[NodeTime], model: ir.Model, sites: Sequence[Site]) -> Times:
    """Sum the times of a profile by site: a kernel belongs to the site whose node, or node's output, it is named after."""
    by_node = {name: site for site in sites for name in site.nodes}
    owner = dict(by_node)
    for node in model.graph.all_nodes():
        if (site := by_node.get(node.name or "")) is not None:
            owner |= {output.name: site for output in node.outputs if output.name}
    found: defaultdict[Site, float] = defaultdict(float)
    rest, integer = 0.0, set()
    for kernel in profile:
        site = owner.get(kernel.origin) or owner.get(kernel.name)
        if site is None:
            rest += kernel.milliseconds
            continue
        found[site] += kernel.milliseconds
        if kernel.integer:
            integer.add(site)
    return Times(dict(found), rest, frozenset(integer))


@dataclass
class Estimate:
    """What is known of the sites' times so far, and the plans that are cheapest by it."""

    sites: Sequence[Site]
    borders: Sequence[Border]
    alone: dict[Site, float]
    """Milliseconds of each site when it is left as it is."""
    changed: dict[Site, float]
    base_rest: float
    """Milliseconds of what belongs to no site in the model before."""
    rate: float = _LEAST_RATE
    tied: list[tuple[Site, Site]] = field(default_factory=list)
    """Neighbours that the runtime computes as one, before or after: their times cannot be told apart."""

    @classmethod
    def of(cls, sites: Sequence[Site], borders: Sequence[Border], before: Times, after: Times) -> Estimate:
        """An estimate from the profiles with no site changed (``before``) and with all of them (``after``)."""
        alone = {site: before.sites.get(site, 0.0) for site in sites}
        changed = {site: after.sites.get(site, 0.0) for site in sites}
        estimate = cls(sites, borders, alone, changed, before.rest)
        estimate.tied = [*_tied(borders, before, after)]
        estimate._learn_rate(after.rest, frozenset(sites))
        return estimate

    def learn(self, plan: frozenset[Site], measured: Times) -> None:
        """Correct the times by a profile of the model in which the sites of ``plan`` are changed."""
        for site in self.sites:
            (self.changed if site in plan else self.alone)[site] = measured.sites.get(site, 0.0)
        self._learn_rate(measured.rest, plan)

    def cheapest(self, caution: float = 1.0, damage: Mapping[Site, float] | None = None, price: float = 0.0) -> frozenset[Site]:
        """The sites to change for the least time by this estimate.

        Args:
            caution: Factor on the cost of borders; above 1 for fewer, larger regions.
            damage: What changing a site does to the answers, in any unit.
            price: Milliseconds that may be spent to avoid one unit of damage.
        """
        index = {site: number for number, site in enumerate(self.sites)}
        costs = [
            (self.alone[site], self.changed[site] + price * (damage[site] if damage is not None else 0.0))
            for site in self.sites
        ]
        weights: list[tuple[int, int, float]] = [(index[a], index[b], float("inf")) for a, b in self.tied]
        for a, b, elements in _pairs(self.borders):
            weight = caution * self.rate * elements
            if a is not None and b is not None:
                weights.append((index[a], index[b], weight))
            elif (site := a or b) is not None:
                alone, changed = costs[index[site]]
                costs[index[site]] = (alone, changed + weight)
        labels = cheapest_labels(costs, weights)
        return frozenset(site for site, label in zip(self.sites, labels, strict=True) if label)

    def _learn_rate(self, rest: float, plan: frozenset[Site]) -> None:
        converted = sum(elements for a, b, elements in _pairs(self.borders) if (a in plan) != (b in plan))
        if converted:
            self.rate = max(_LEAST_RATE, (rest - self.base_rest) / converted)


def _pairs(borders: Sequence[Border]) -> Iterator[tuple[Site | None, Site | None, int]]:
    return ((border.a, border.b, border.elements) for border in borders)


def _tied(borders: Sequence[Border], before: Times, after: Times) -> Iterator[tuple[Site, Site]]:
    """Each site that has a kernel in one of the models only, with the neighbour whose kernel computes it in the other.

    That is a site after it (a convolution goes into the addition that follows), or one before it when nothing follows.
    """
    following: dict[Site, Site] = {}
    preceding: dict[Site, Site] = {}
    for border in borders:
        if border.a is not None and border.b is not None:
            following.setdefault(border.a, border.b)
            preceding.setdefault(border.b, border.a)
    for site in dict.fromkeys([*following, *preceding]):
        if (site in before.sites) != (site in after.sites):
            yield site, following.get(site) or preceding[site]
