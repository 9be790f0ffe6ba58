"""How many steps a goal needs or a budget allows, in few tries: each may be a model whose layers are fitted, or timed.

``first``, ``least_that_pays``: the least number for which something holds, which only a try can tell.

``harshest_within``: the most that a budget allows. What the steps were foreseen to do says where to try; what a try spent says
where to try next (``Reach``). ``best_within`` leaves out those that turn out to do more than was foreseen, and goes on with
those behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

_Step = TypeVar("_Step")
WORTH = 1.02
"""The least speed-up over the model before for which accuracy is spent under the goal of latency: less may be noise."""
_FIRST_DAMAGE = 0.05
"""Summed noise-to-signal ratio of the outputs that is tried first."""
_LESS, _MORE = 3.0, 2.0
"""How many times less damage, or more, is tried next at most."""
_AIM = 0.9
"""The part of the budget that is aimed at."""
_FAR = 10.0
"""What spends the budget so many times, or more, says no more than that it is far beyond."""
_PROBES = 5
"""Tries at most."""
_FEW = 3
"""Steps that are left out together if they do not hold the budget; of more, fewer are tried."""
_FORESEEN = 4.0
"""Times the budget that twice the damage is taken to spend, where what was known is of steps that are left out by now."""
_NEAR = 0.8
"""Of the budget: what spends so much and holds it is harsh enough."""
_NEARER = 0.9
"""The same where several passes share it."""


def first(count: int, holds: Callable[[int], bool], coarse: int = 1) -> int:
    """The first of ``count`` numbers from 0 for which ``holds``; ``count`` if none is found.

    ``coarse`` numbers, evenly spaced, are tried in order; what lies before the first of them that holds is bisected. One is
    enough if it holds for all that follow the first; a metric on few samples goes up and down, and needs more.
    """
    low = -1
    for high in dict.fromkeys(round(at) for at in np.linspace(0, count - 1, coarse)) if coarse > 1 else (count,):
        if high == count or holds(high):
            break
        low = high
    else:
        return count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def least_that_pays(saved: Sequence[float], whole: float, pays: Callable[[int], bool]) -> int:
    """The least number of steps that makes a model faster by the clock; 0 if no number that was tried does.

    Args:
        saved: What the sites' own times promise of the first step, the first two, ...: where to begin, and no more.
        whole: The model's time, in the same unit.
        pays: Times the model after so many steps.
    """
    count = len(saved)
    promised = 1 + first(count, lambda index: saved[index] >= whole * (1 - 1 / WORTH))
    if promised > count:
        return 0
    if pays(promised):
        return promised
    if promised == count or not pays(count):
        return 0
    return promised + 1 + first(count - promised - 1, lambda index: pays(promised + 1 + index))


@dataclass(frozen=True)
class Reach:
    """How far a budget goes, as far as that is known: pairs of damage and the part of the budget that it spends."""

    low: tuple[float, float] = (0.0, 0.0)
    """The last that held."""
    high: tuple[float, float] | None = None
    """The last that did not."""
    count: int = 0
    """Steps that hold."""

    def told(self, damage: float, part: float, count: int) -> Reach:
        """With one more try."""
        return replace(self, low=(damage, part), count=count) if part <= 1 else replace(self, high=(damage, part))

    def without_high(self) -> Reach:
        """With what does not hold left out."""
        damage, _ = self.low
        return replace(self, high=(2 * damage, _FORESEEN)) if damage else self

    def guess(self) -> float:
        """The damage to be tried next: on the line through both, or in proportion to the one that is known."""
        damage, part = self.low
        if self.high is None:
            return damage * _AIM / max(part, _AIM / _MORE) if damage else _FIRST_DAMAGE
        part, beyond, far = min(max(part, 0.0), _AIM), self.high[0], min(self.high[1], _FAR)
        at = damage + (beyond - damage) * (_AIM - part) / (far - part)
        return at if damage else max(at, beyond / _LESS)


def harshest_within(damage: Sequence[float], spent: Callable[[int], float], least: int = 0) -> int:
    """How many steps a budget allows; 0 if none of the numbers that were tried does.

    Args:
        damage: Of all steps up to the first, the second, ...; it rises.
        spent: The part of the budget that so many steps spend.
        least: Fewer are of no use. They are tried first where they do much damage: what cannot be had is told after one try.
    """
    reach = Reach()
    if least and _LESS * damage[least - 1] > _FIRST_DAMAGE:
        if (part := spent(least)) > 1:
            return 0
        reach = reach.told(damage[least - 1], part, least)
    found = _within([*range(len(damage))], lambda _: damage, lambda some: spent(len(some)), reach, least)
    return len(found) if len(found) >= least else 0


def best_within(
    steps: Sequence[_Step],
    damage: Callable[[Sequence[_Step]], Sequence[float]],
    spent: Callable[[Sequence[_Step]], float],
    site: Callable[[_Step], Hashable],
) -> list[_Step]:
    """The steps that a budget allows: the first of them, without a few that turn out to do more than was foreseen.

    Args:
        steps: Those first that give most for the damage that they do.
        damage: Of all steps up to the first, the second, ... of some; it rises.
        spent: The part of the budget that some of them spend.
        site: Where a step is taken; if it is not, those that follow it there are not either.
    """
    return _within(steps, damage, spent, Reach(), few=_FEW, site=site, near=_NEARER)


def _within(
    steps: Sequence[_Step],
    damage: Callable[[Sequence[_Step]], Sequence[float]],
    spent: Callable[[Sequence[_Step]], float],
    reach: Reach,
    least: int = 0,
    few: int = 0,
    site: Callable[[_Step], Hashable] = hash,
    near: float = _NEAR,
) -> list[_Step]:
    """The first of the steps, as many as hold; ``few`` that do not are left out, and those behind them are tried."""
    left, low, high = [*steps], max(least - 1, reach.count), len(steps) + 1
    for _ in range(_PROBES):
        if low + 1 >= high:
            break
        sums = damage(left)
        count = min(max(int(np.searchsorted(sums, reach.guess(), side="right")), low + 1), high - 1)
        if reach.count < least and high <= len(left):
            count = least  # where even the least fails nothing else is looked for
        part = spent(left[:count])
        reach = reach.told(sums[count - 1], part, count)
        if part <= 1:
            low = count
        elif count - low <= few:
            gone = {site(step) for step in left[low:count]}
            left = [*left[:low], *(step for step in left[count:] if site(step) not in gone)]
            high, reach = len(left) + 1, reach.without_high()
        else:
            high = count
        if near <= part <= 1:
            break
    return left[: reach.count]
