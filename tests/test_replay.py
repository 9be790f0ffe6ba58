"""Replaying a model part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import model
from graphopt.dataset import Batch, Dataset
from graphopt.replay import Replay

from helpers import from_text, small_cnn
from observing import context


def ran(graph: ir.Model, feed: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """The values in one run of the whole model."""
    whole = model.clone(graph)
    for node in whole.graph:
        whole.graph.outputs.extend(v for v in node.outputs if v.name in names and not v.is_graph_output())
    with context(whole, **feed) as made, made.open_session(whole) as session:
        found = session.run(feed)
    return {name: found[name] if name in found else feed[name] for name in names}


@pytest.mark.parametrize("stops", [(), ("c1",), ("r1", "c2", "a"), ("a", "f")])
def test_values_are_those_of_a_run_of_the_whole_wherever_it_stops(stops: tuple[str, ...], tmp_path: Path) -> None:
    graph = ir.from_proto(small_cnn())
    feed = {"x": np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32)}
    with context(graph, **feed) as made:
        assert made.data is not None
        replay = Replay(graph, made.data.batched(4), made.open_session, tmp_path)
        for stop in stops:
            replay.advance(replay.position_of(stop))
            assert replay.crossing(replay.position)
        found = [*replay.run(["f", "y"])]
    expected = ran(graph, feed, ["f", "y"])
    for name in ("f", "y"):
        np.testing.assert_allclose(np.concatenate([part[name] for part in found]), expected[name], rtol=1e-4, atol=1e-5)


def test_weights_that_change_behind_the_position_count(tmp_path: Path) -> None:
    graph = ir.from_proto(small_cnn())
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    with context(graph, **feed) as made:
        assert made.data is not None
        replay = Replay(graph, made.data, made.open_session, tmp_path)
        replay.advance(replay.position_of("c2"))
        value = graph.graph.initializers["w3"]
        assert value.const_value is not None
        value.const_value = ir.tensor(2 * value.const_value.numpy())
        [found] = replay.run(["y"])
    np.testing.assert_allclose(found["y"], ran(graph, feed, ["y"])["y"], rtol=1e-4, atol=1e-5)


def test_only_what_is_read_later_is_kept(tmp_path: Path) -> None:
    graph = ir.from_proto(small_cnn())
    with context(graph, x=np.zeros((4, 3, 8, 8), np.float32)) as made:
        assert made.data is not None
        replay = Replay(graph, made.data.batched(2), made.open_session, tmp_path)
        assert replay.crossing(0) == ["x"]
        replay.advance(replay.position_of("a"))
        assert replay.crossing(replay.position) == ["r1", "c2"]
        assert len([*tmp_path.iterdir()]) == 4
        replay.advance(replay.position_of("p"))
        assert len([*tmp_path.iterdir()]) == 2


def test_values_that_a_subgraph_reads_are_kept_for_it(tmp_path: Path) -> None:
    graph = ir.from_proto(
        from_text(
            """agraph (float[N,2] x, bool c) => (float[N,2] y) {
                a = Relu(x)
                b = Neg(x)
                y = If (c) <
                    then_branch = t () => (float[N,2] u) { u = Add(a, b) },
                    else_branch = e () => (float[N,2] v) { v = Mul(a, b) }
                >
            }"""
        )
    )
    feed = {"x": np.array([[1.0, -2.0]], np.float32), "c": np.array(True)}
    with context(small_cnn(), x=np.zeros((1, 3, 8, 8), np.float32)) as made:
        data = Dataset("made", ((0, 1),), lambda spans: iter([Batch(feed, None, 1)] * len(spans)), lambda: "")
        replay = Replay(graph, data, made.open_session, tmp_path)
        replay.advance(replay.position_of("y"))
        assert replay.crossing(replay.position) == ["c", "a", "b"]
        [found] = replay.run(["y"])
    np.testing.assert_array_equal(found["y"], [[0.0, 2.0]])
