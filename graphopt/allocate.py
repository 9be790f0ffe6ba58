"""Chooses a setting for each site of a LossyPass.

``uniform`` is the simplest strategy: every site the same distance from gentle to harsh. It yields plans from the
harshest to the gentlest, so that the first one that holds the budget is the one that gives most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .contracts import Plan, Site


def uniform(sites: Sequence[Site]) -> Iterator[Plan]:
    """Yield plans from harsh to gentle: in the k-th every site is k settings gentler than its harshest.

    A site that has no setting that gentle is left out of the plan (left alone); a plan with no sites is not yielded.
    """
    deepest = max((len(site.settings) for site in sites), default=0)
    for gentler in range(deepest):
        plan = {site: site.settings[-1 - gentler] for site in sites if gentler < len(site.settings)}
        if plan:
            yield plan
