"""What the removal of channels saves, and how much of it is time."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphopt.passes.prune import shares


def node(name: str) -> ir.Node:
    return ir.node("Conv", [ir.val("x"), ir.val("w")], name=name)


def test_half_the_channels_save_less_than_half_of_a_time_that_is_not_in_proportion() -> None:
    conv = node("conv")
    # 18 us whole, 12 us with half of the channels: the line through both has 12 us that go with the channels.
    found = shares.in_proportion({conv: 18.0}, {conv: 1000}, {"conv": 12.0}, {"conv": 500})
    assert found[conv] == pytest.approx(12.0)
    assert found[conv] * 0.5 == pytest.approx(18.0 - 12.0)


def test_a_layer_that_gets_slower_with_fewer_channels_saves_nothing() -> None:
    conv = node("conv")
    assert shares.in_proportion({conv: 14.0}, {conv: 1000}, {"conv": 20.0}, {"conv": 500}) == {conv: 0.0}


def test_more_is_not_saved_than_is_spent() -> None:
    conv = node("conv")
    assert shares.in_proportion({conv: 14.0}, {conv: 1000}, {"conv": 2.0}, {"conv": 500}) == {conv: 14.0}


@pytest.mark.parametrize(("fewer", "macs"), [({}, {"conv": 500}), ({"conv": 5.0}, {"conv": 1000})])
def test_without_two_points_all_of_the_time_is_in_proportion(fewer: dict[str, float], macs: dict[str, int]) -> None:
    conv = node("conv")
    assert shares.in_proportion({conv: 14.0}, {conv: 1000}, fewer, macs) == {conv: 14.0}
