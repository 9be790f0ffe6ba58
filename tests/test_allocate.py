"""Sites are chosen by what they save, what their borders cost, and what they do to the answers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import allocate, payoff, sensitivity
from graphopt.cli import graphopt
from graphopt.contracts import Border, Grade, NodeTime, Plan, Setting, Silent, Site
from graphopt.mincut import cheapest_labels
from graphopt.pipeline import optimize
from graphopt.ranking import rank

from helpers import from_text

DEMO = Path(__import__("graphopt").__file__).parent / "demo"
INT8 = (Setting("int8"),)


def site(name: str) -> Site:
    return Site(name, "Conv", INT8, nodes=(name,))


A, B, C, D = (site(name) for name in "abcd")


# ----------------------------------------------------------------------------------------------------------- minimum cuts

cost = st.floats(-5, 5).map(lambda x: round(x, 3))


@given(st.data(), st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_no_labelling_is_cheaper_than_the_minimum_cut(data: st.DataObject, nodes: int) -> None:
    costs = data.draw(st.lists(st.tuples(cost, cost), min_size=nodes, max_size=nodes))
    pairs = [(a, b) for a in range(nodes) for b in range(a)]
    weight = st.one_of(st.just(0.0), st.floats(0, 4), st.just(math.inf))
    weights = [(a, b, data.draw(weight)) for a, b in pairs if data.draw(st.booleans())]

    def total(labels: tuple[bool, ...] | list[bool]) -> float:
        own = sum(pair[label] for pair, label in zip(costs, labels, strict=True))
        return own + sum(weight for a, b, weight in weights if labels[a] != labels[b])

    best = min(total(labels) for labels in itertools.product((False, True), repeat=nodes))
    assert total(cheapest_labels(costs, weights)) == pytest.approx(best, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------- payoffs


def estimate(
    alone: Sequence[float], changed: Sequence[float], borders: Sequence[Border] = (), rate: float = 1.0
) -> payoff.Estimate:
    sites = [A, B, C, D][: len(alone)]
    times = (dict(zip(sites, values, strict=True)) for values in (alone, changed))
    return payoff.Estimate(sites, borders, *times, 0.0, rate)


CHAIN = [Border(None, A, 1), Border(A, B, 1), Border(B, C, 1), Border(C, None, 1)]


def test_a_site_that_is_slower_when_changed_is_left_alone() -> None:
    assert estimate([5, 5], [1, 9]).cheapest() == {A}


def test_a_gain_smaller_than_its_conversions_is_not_worth_a_region() -> None:
    assert estimate([5, 5, 5], [9, 4, 9], CHAIN).cheapest() == frozenset()
    assert estimate([5, 5, 5], [9, 4, 9], CHAIN, rate=0.4).cheapest() == {B}


def test_a_slower_site_between_two_that_gain_stays_in_their_region() -> None:
    assert estimate([9, 5, 9], [1, 6, 1], CHAIN).cheapest() == {A, B, C}


def test_caution_makes_regions_fewer_and_larger() -> None:
    gains = estimate([9, 5, 9], [1, 8, 1], CHAIN)
    assert gains.cheapest() == {A, C}
    assert gains.cheapest(caution=3.0) == {A, B, C}


def test_kernels_are_attributed_by_the_nodes_name_or_the_values_that_it_computes() -> None:
    model = ir.from_proto(from_text("g (float[N] x) => (float[N] y) { [a] h = Relu(x) [b] i = Abs(h) [other] y = Neg(i) }"))
    profile = [
        NodeTime("h_nchwc", "Relu", "cpu", 2.0, origin="h"),
        NodeTime("b_token_3", "QLinearAbs", "cpu", 3.0, origin="b", integer=True),
        NodeTime("other", "Neg", "cpu", 5.0, origin="other"),
        NodeTime("Transpose_token_4", "Transpose", "cpu", 7.0, origin="Transpose"),
    ]
    found = payoff.attribute(profile, model, [A, B])
    assert found.sites == {A: 2.0, B: 3.0}
    assert found.rest == 12.0
    assert found.integer == {B}


def test_a_site_that_a_neighbours_kernel_computes_goes_where_the_neighbour_goes() -> None:
    before = payoff.Times({B: 10.0}, 0.0)  # a was fused into b: its time is in b's
    after = payoff.Times({A: 6.0, B: 1.0}, 0.0)
    assert payoff.Estimate.of([A, B], [Border(A, B, 0)], before, after).cheapest() == {A, B}


def test_the_clock_has_the_last_word_over_the_estimate() -> None:
    """The estimate wants b alone, but the clock finds the model with both faster."""
    speeds = {frozenset({A, B}): 2.0, frozenset({B}): 0.9}
    chosen = allocate.fastest(
        estimate([5, 5], [6, 1]), lambda plan: speeds[plan], lambda _: payoff.Times({A: 1.0, B: 1.0}, 0.0), Silent()
    )
    assert chosen.sites == {A, B}
    assert chosen.speedup == 2.0


def test_why_a_site_was_left_alone_gives_its_times() -> None:
    times = payoff.Times({A: 5.0, B: 1.0}, 0.0)
    chosen = allocate.fastest(estimate([5, 5], [6, 1]), lambda plan: 2.0 - len(plan) / 2, lambda _: times, Silent())
    assert chosen.sites == {B}
    assert chosen.left == {A: "slower when changed: 6000 us instead of 5000 us"}


# --------------------------------------------------------------------------------------------------------- many settings

TWO = Site("two", "Conv", (Setting("half"), Setting("all")))
ONE = Site("one", "Conv", (Setting("all"),))


def test_plans_go_from_harsh_to_gentle_by_what_a_step_saves_for_its_damage() -> None:
    half, every = TWO.settings
    grades = {
        (TWO, half): Grade(damage=1, macs=10),
        (TWO, every): Grade(damage=5, macs=14),
        (ONE, ONE.settings[0]): Grade(damage=1, macs=4),
    }
    whole = ONE.settings[0]
    plans = allocate.frontier([TWO, ONE], grades, "macs")
    assert plans == [{TWO: every, ONE: whole}, {TWO: half, ONE: whole}, {TWO: half}]


def test_a_setting_below_the_convex_hull_is_never_taken() -> None:
    half, every = TWO.settings
    grades = {(TWO, half): Grade(damage=5, macs=2), (TWO, every): Grade(damage=6, macs=9)}
    assert allocate.frontier([TWO], grades, "macs") == [{TWO: every}]


@given(st.lists(st.tuples(st.floats(0, 9).map(lambda x: round(x, 3)), st.integers(0, 9)), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_no_setting_dominates_one_that_the_frontier_takes(graded: list[tuple[float, int]]) -> None:
    site = Site("s", "Conv", tuple(Setting(str(index)) for index in range(len(graded))))
    grades = {(site, setting): Grade(damage, macs) for setting, (damage, macs) in zip(site.settings, graded, strict=True)}
    for plan in allocate.frontier([site], grades, "macs"):
        taken = grades[site, plan[site]]
        better = [other for other in grades.values() if other.damage < taken.damage and other.macs >= taken.macs]
        assert not better


_GRADED = st.lists(st.tuples(st.floats(0.001, 9).map(lambda x: round(x, 3)), st.integers(1, 9)), min_size=1, max_size=4)


@given(st.lists(_GRADED, min_size=1, max_size=4), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_what_a_goal_can_do_without_is_given_back(graded: list[list[tuple[float, int]]], part: float) -> None:
    sites = [Site(str(n), "Conv", tuple(Setting(str(k)) for k in range(len(one)))) for n, one in enumerate(graded)]
    pairs = [(s, t, grade) for s, one in zip(sites, graded, strict=True) for t, grade in zip(s.settings, one, strict=True)]
    grades = {(site, setting): Grade(*grade) for site, setting, grade in pairs}

    def total(plan: Plan, of: str) -> float:
        return sum(float(getattr(grades[one], of)) for one in plan.items())

    plans = allocate.frontier(sites, grades, "macs")
    goal = part * total(plans[0], "macs")
    chosen = max(index for index, plan in enumerate(plans) if total(plan, "macs") >= goal)
    found = allocate.spared(plans, chosen, grades, "macs", lambda plan: round(total(plan, "macs") - goal))
    assert total(found, "macs") >= goal - 0.5
    assert total(found, "damage") <= total(plans[chosen], "damage")


def test_the_step_that_went_too_far_gives_back_what_does_most_damage() -> None:
    half, every = TWO.settings
    whole = ONE.settings[0]
    grades = {
        (TWO, half): Grade(damage=1, macs=10),
        (TWO, every): Grade(damage=9, macs=30),
        (ONE, whole): Grade(damage=1, macs=4),
    }
    plans = allocate.frontier([TWO, ONE], grades, "macs")
    assert plans[0] == {TWO: every, ONE: whole}

    def spare(plan: Plan) -> int:
        return sum(grades[one].macs for one in plan.items()) - 29

    assert allocate.spared(plans, 0, grades, "macs", spare) == {TWO: every}


def test_a_setting_that_drowns_the_outputs_is_never_taken() -> None:
    site = Site("a", "MatMul", (Setting("gentle"), Setting("harsh")))
    gentle, harsh = site.settings
    grades = {(site, gentle): Grade(0.1, macs=1), (site, harsh): Grade(math.inf, macs=9)}
    assert allocate.frontier([site], grades, "macs") == [{site: gentle}]


# ------------------------------------------------------------------------------------------------------------- the budget


def within(damage: dict[Site, float], limit: float) -> frozenset[Site] | None:
    gains = estimate([4, 4, 4, 4], [1, 2, 3, 1])
    everything = allocate.Choice(frozenset([A, B, C, D]), {})

    def over(plan: frozenset[Site]) -> str | None:
        return "too much" if sum(damage[one] for one in plan) > limit else None

    found = allocate.within_budget(everything, gains, damage, over, Silent())
    return found and found.sites


def test_the_most_damaging_site_for_what_it_saves_goes_back_first() -> None:
    assert within({A: 1, B: 1, C: 1, D: 9}, 3) == {A, B, C}
    assert within({A: 1, B: 1, C: 1, D: 1}, 3) == {A, B, D}  # c saves least


def test_nothing_is_kept_when_no_choice_holds_the_budget() -> None:
    assert within({A: 5, B: 5, C: 5, D: 5}, 1) is None


def test_a_site_that_cannot_even_run_is_left_alone() -> None:
    assert within({A: 1, B: math.inf, C: 1, D: 1}, 3) == {A, C, D}


def test_damage_in_decibels() -> None:
    assert sensitivity.Sensitivity(A, INT8[0], 1e-4).sqnr_db == pytest.approx(40)
    assert sensitivity.Sensitivity(A, INT8[0], 0.0).sqnr_db == math.inf
    assert sensitivity.Sensitivity(A, INT8[0], math.inf).sqnr_db == -math.inf


# --------------------------------------------------------------------------------------------------- a real model, end to end


def test_the_integer_kernels_of_a_quantized_model_are_counted(tmp_path: Path) -> None:
    report = optimize(
        DEMO / "digits.onnx", tmp_path / "o.onnx", recipe="int8-static", eval_data=str(DEMO / "digits.npz"), timing=False
    )
    assert report.passed, report.verdict
    quantized = report.passes[-1]
    assert quantized.kept, quantized.why
    planned, offered, integer = map(int, re.findall(r"(\d+) of (\d+) sites, (\d+) as integer kernels", quantized.why)[0])
    assert 0 < integer <= planned <= offered
    assert report.validation is not None
    assert report.validation.metric is not None
    assert report.validation.metric.drop <= 0.01


def test_a_budget_that_int8_breaks_leaves_the_worst_sites_alone(tmp_path: Path) -> None:
    """At a bound on the outputs' cosine that not all sites can hold, the ranking is in the report and some sites stay."""
    report = optimize(
        DEMO / "digits.onnx",
        tmp_path / "o.onnx",
        recipe="int8-static",
        eval_data=str(DEMO / "digits.npz"),
        metric="cosine",
        max_drop=3e-5,
        timing=False,
        settings=[f"quantize.static.{one}" for one in ("method=minmax", "rounding=nearest", "bias_correction=off")],
    )
    quantized = report.passes[-1]
    assert quantized.kept, quantized.why
    assert len(quantized.sensitivity) > 3
    damages = [row.damage for row in quantized.sensitivity]
    assert damages == sorted(damages, reverse=True)
    taken_back = [change for change in quantized.changes if "accuracy than the budget" in change.why]
    assert taken_back
    assert report.validation is not None
    assert report.validation.metric is not None
    assert report.validation.metric.drop <= 3e-5


def test_the_ranking_has_every_site_the_most_sensitive_first(tmp_path: Path) -> None:
    found = rank(DEMO / "digits.onnx", data=str(DEMO / "digits.npz"), samples=8)
    [one] = found.passes
    damages = [row.damage for row in one.sites]
    assert one.name == "quantize.static"
    assert len(one.sites) > 3
    assert all(np.isfinite(damages))
    assert damages == sorted(damages, reverse=True)


def test_sensitivity_prints_a_table_and_writes_a_page(tmp_path: Path) -> None:
    arguments = ["sensitivity", str(DEMO / "digits.onnx"), "--data", str(DEMO / "digits.npz"), "--samples", "4", "--top", "2"]
    done = CliRunner().invoke(
        graphopt, [*arguments, "--report", str(tmp_path / "r")], catch_exceptions=False, standalone_mode=False
    )
    assert "quantize.static: site" in done.output
    assert "less sensitive ones are not shown" in done.output
    page = (tmp_path / "r" / "sensitivity.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert (tmp_path / "r" / "sensitivity.json").is_file()


def test_a_recipe_without_a_lossy_pass_cannot_be_ranked() -> None:
    with pytest.raises(Exception, match="no pass that costs accuracy"):
        rank(DEMO / "digits.onnx", data=str(DEMO / "digits.npz"), recipe="lossless")
