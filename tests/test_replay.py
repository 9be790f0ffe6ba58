"""Replaying a model part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import model, replay
from graphopt.contracts import Session
from graphopt.dataset import Batch, Dataset
from graphopt.replay import Replay, alike

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


def doubled(before: ir.Model, weight: str) -> ir.Model:
    """A clone with one weight twice as large."""
    after = model.clone(before)
    value = after.graph.initializers[weight]
    assert value.const_value is not None
    value.const_value = ir.tensor(2 * value.const_value.numpy())
    return after


@pytest.mark.parametrize(("weight", "computed"), [("w1", 8), ("w2", 6), ("w3", 1)])
def test_what_another_model_computes_alike_is_taken_from_its_replay(weight: str, computed: int, tmp_path: Path) -> None:
    before = ir.from_proto(small_cnn())
    after = doubled(before, weight)
    feed = {"x": np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32)}
    with context(before, **feed) as made:
        assert made.data is not None
        sizes = []

        def open_session(part: ir.Model) -> Session:
            sizes.append(len(part.graph))
            return made.open_session(part)

        folders = [tmp_path / "before", tmp_path / "after"]
        for folder in folders:
            folder.mkdir()
        first = Replay(before, made.data.batched(4), made.open_session, folders[0])
        second = Replay(after, first, open_session, folders[1])
        found = np.concatenate([part["y"] for part in second.run(["y"])])
    np.testing.assert_allclose(found, ran(after, feed, ["y"])["y"], rtol=1e-4, atol=1e-5)
    assert sizes == [computed]


def test_nothing_is_kept_behind_nodes_that_are_going_to_change(tmp_path: Path) -> None:
    before = ir.from_proto(small_cnn())
    after = model.clone(before)
    feed = {"x": np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)}
    with context(before, **feed) as made:
        assert made.data is not None
        folders = [tmp_path / "before", tmp_path / "after"]
        for folder in folders:
            folder.mkdir()
        first = Replay(before, made.data, made.open_session, folders[0])
        first.keep(["c2", "p"])
        second = Replay(after, first, made.open_session, folders[1], [node for node in after.graph if node.name == "conv2"])
        after.graph.initializers["w2"].const_value = doubled(before, "w2").graph.initializers["w2"].const_value
        found = np.concatenate([part["y"] for part in second.run(["y"])])
    np.testing.assert_allclose(found, ran(after, feed, ["y"])["y"], rtol=1e-4, atol=1e-5)


def test_values_are_the_same_whether_there_is_room_to_keep_them_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ir.from_proto(small_cnn())
    feed = {"x": np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32)}
    expected = ran(graph, feed, ["a", "f"])
    size = expected["f"].nbytes
    for room, files in [(0, 3), (2 * size, 6), (1 << 30, 9)]:
        monkeypatch.setattr(replay, "ROOM", room)
        folder = tmp_path / str(room)
        folder.mkdir()
        with context(graph, **feed) as made:
            assert made.data is not None
            kept = Replay(graph, made.data.batched(4), made.open_session, folder)
            kept.keep(["a", "f"])
            assert len([*folder.iterdir()]) == files
            found = [*kept.run(["a", "f"])]
        for name, values in expected.items():
            np.testing.assert_allclose(np.concatenate([part[name] for part in found]), values, rtol=1e-4, atol=1e-5)


def test_models_are_alike_up_to_other_weights_attributes_or_operators() -> None:
    before = ir.from_proto(small_cnn())
    assert alike(before, model.clone(before)) >= {"x", "c1", "r1", "c2", "a", "r2", "p", "f", "y"}
    assert alike(before, doubled(before, "w2")) == {"x", "c1", "r1"}
    after = model.clone(before)
    after.graph[2].attributes["dilations"] = ir.AttrInt64s("dilations", [1, 1])
    assert alike(before, after) == {"x", "c1", "r1"}
    after = model.clone(before)
    after.graph[4].op_type = "Sigmoid"
    assert alike(before, after) == {"x", "c1", "r1", "c2", "a"}
