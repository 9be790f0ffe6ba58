"""How many steps a goal needs or a budget allows is found in few tries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt import search


@given(st.integers(0, 60), st.integers(0, 60))
def test_bisection_finds_the_first(count: int, at: int) -> None:
    assert search.first(count, lambda index: index >= at) == min(count, at)
    assert search.first(count, lambda index: index >= at, coarse=4) == min(count, at)


@given(st.lists(st.floats(1e-6, 3.0), min_size=1, max_size=40), st.data())
def test_few_tries_find_steps_that_the_budget_allows(added: list[float], data: st.DataObject) -> None:
    damage = np.cumsum(added).tolist()
    allowed, least = (data.draw(st.integers(0, len(damage))) for _ in range(2))
    tried: list[int] = []

    def spent(count: int) -> float:
        tried.append(count)
        return 0.5 if count <= allowed else 2.0

    found = search.harshest_within(damage, spent, least)
    assert found == max((count for count in tried if count <= allowed), default=0)
    assert len({*tried}) == len(tried) <= 6
    assert all(max(least, 1) <= count <= len(damage) for count in tried)


@given(st.integers(1, 30), st.integers(1, 32), st.integers(1, 32))
def test_the_least_that_pays_is_found_wherever_the_promise_points(count: int, true: int, promised: int) -> None:
    saved = [1.0 if number >= promised else 0.0 for number in range(1, count + 1)]
    found = search.least_that_pays(saved, 10.0, lambda number: number >= true)
    assert found == (0 if promised > count or true > count else max(true, promised))


def test_steps_that_do_much_damage_and_do_not_hold_are_given_up_after_one_try() -> None:
    tried: list[int] = []

    def spent(count: int) -> float:
        tried.append(count)
        return 2.0

    assert search.harshest_within([0.01, 0.1, 0.2, 0.4], spent, least=2) == 0
    assert tried == [2]


def test_where_more_fails_the_least_of_use_is_tried_next() -> None:
    tried: list[int] = []

    def spent(count: int) -> float:
        tried.append(count)
        return 2.0

    assert search.harshest_within([0.001, 0.002, 0.004, 0.01, 0.04, 0.3], spent, least=2) == 0
    assert tried == [5, 2]


def test_what_nearly_spends_the_budget_is_harsh_enough() -> None:
    tried: list[int] = []

    def spent(count: int) -> float:
        tried.append(count)
        return 0.9

    assert search.harshest_within([0.01, 0.04, 0.2], spent) == 2
    assert tried == [2]


def of_steps(some: Sequence[int]) -> list[float]:
    return [0.005 * (place + 1) for place in range(len(some))]


def test_a_step_that_does_more_than_foreseen_is_left_out_and_those_behind_it_are_taken() -> None:
    def spent(some: Sequence[int]) -> float:
        return 0.02 * len(some) + (2.0 if 11 in some else 0.0)

    taken = search.best_within(range(40), of_steps, spent, lambda step: step)
    assert 11 not in taken
    assert max(taken) > 11
    assert spent(taken) <= 1


def test_a_site_whose_step_is_left_out_takes_no_harsher_one() -> None:
    taken = search.best_within(range(40), of_steps, lambda some: 2.0 if 0 in some else 0.0, lambda step: step % 2)
    assert taken
    assert all(step % 2 for step in taken)


@given(st.lists(st.floats(0.0, 0.5), max_size=40))
def test_the_steps_that_are_taken_hold_the_budget_as_they_were_tried(costs: list[float]) -> None:
    def spent(some: Sequence[int]) -> float:
        tried.append([*some])
        return sum(costs[step] for step in some)

    tried: list[list[int]] = []
    taken = search.best_within(range(len(costs)), of_steps, spent, lambda step: step)
    assert len(tried) <= 5
    assert not taken or taken in tried
    assert spent(taken) <= 1


def test_a_coarse_look_finds_what_bisection_would_pass_by() -> None:
    """As a metric on few samples is: it holds at 10 to 20 and from 90 on, and fails in the middle."""
    assert search.first(100, lambda index: 10 <= index <= 20 or index >= 90, coarse=8) == 10
