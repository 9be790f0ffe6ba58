from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import observe
from graphopt.contracts import Context, Session
from graphopt.model import clone, fingerprint, load
from graphopt.observe import Cache, ChannelMean, Histogram, Keep, MinMax, cache

from helpers import small_cnn, write
from observing import context

X = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
WANTED = {"c1": [MinMax(), Histogram()], "a": [ChannelMean()]}


def counting(c: Context, folder: Path | None) -> tuple[Context, list[str]]:
    """The context with a cache, and a list that grows with every session that is opened."""
    opened: list[str] = []

    def open_session(model: ir.Model) -> Session:
        opened.append("session")
        return c.open_session(model)

    return dataclasses.replace(c, open_session=open_session, observed=Cache(folder)), opened


def same(a: tuple[observe.Result, ...], b: tuple[observe.Result, ...]) -> bool:
    return all(
        type(first) is type(second)
        and all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))
        for first, second in zip(a, b, strict=True)
    )


def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    model = ir.from_proto(small_cnn())
    with context(small_cnn(), x=X) as c:
        first, opened = counting(c, tmp_path)
        found = first.observe(model, WANTED)
        assert len(opened) == 1
        again = first.observe(clone(model), {"a": [ChannelMean()]})
        assert len(opened) == 1
        assert same(again["a"], found["a"])
        first.observe(model, {"a": [ChannelMean(), MinMax()]})
        assert len(opened) == 2
        later, opened = counting(c, tmp_path)
        from_disk = later.observe(model, WANTED)
        assert opened == []
        assert all(same(from_disk[name], found[name]) for name in WANTED)
        assert isinstance(from_disk["c1"][0].low, float)
        assert isinstance(from_disk["c1"][1].first, int)


def test_another_weight_other_data_or_fewer_samples_are_computed_afresh(tmp_path: Path) -> None:
    model = ir.from_proto(small_cnn())
    with context(small_cnn(), x=X) as c, context(small_cnn(), x=X + 1) as other:
        first, _ = counting(c, tmp_path)
        found = first.observe(model, WANTED)
        changed = clone(model)
        weight = changed.graph.initializers["w1"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * 2, name="w1")
        assert not same(first.observe(changed, WANTED)["c1"], found["c1"])
        assert not same(first.observe(model, WANTED, samples=2)["c1"], found["c1"])
        assert not same(counting(other, tmp_path)[0].observe(model, WANTED)["c1"], found["c1"])


def test_broken_files_are_ignored_and_replaced(tmp_path: Path) -> None:
    model = ir.from_proto(small_cnn())
    with context(small_cnn(), x=X) as c:
        found = counting(c, tmp_path)[0].observe(model, WANTED)
        (file,) = tmp_path.iterdir()
        whole = file.read_bytes()
        for content in (b"", b"not an archive", whole[: len(whole) // 2]):
            file.write_bytes(content)
            later, opened = counting(c, tmp_path)
            assert same(later.observe(model, WANTED)["c1"], found["c1"])
            assert len(opened) == 1
            assert file.read_bytes() != content


def test_large_results_stay_in_memory_and_the_folder_does_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ir.from_proto(small_cnn(channels=64))
    with context(small_cnn(channels=64), x=np.tile(X, (30, 1, 1, 1))) as c:
        kept, opened = counting(c, tmp_path)
        arrays = kept.observe(model, {"c1": [Keep(180)]})["c1"][0].arrays
        assert sum(array.nbytes for array in arrays) > 2 << 20
        kept.observe(model, {"c1": [Keep(180)]})
        assert len(opened) == 1
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setattr(cache, "LIMIT_BYTES", 8_000)
        for samples in range(1, 6):
            for path in tmp_path.iterdir():
                os.utime(path, (samples, samples))
            kept.observe(model, {"c1": [MinMax()] * samples, "r1": [ChannelMean()]}, samples=32 * samples)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 8_000
        assert 1 <= len(list(tmp_path.iterdir())) < 5


def test_results_cannot_be_changed_behind_the_caches_back(tmp_path: Path) -> None:
    with context(small_cnn(), x=X) as c:
        found = counting(c, tmp_path)[0].observe(ir.from_proto(small_cnn()), WANTED)["a"][0]
        with pytest.raises(ValueError, match="read-only"):
            found.mean[0] = 0


def test_a_folder_that_cannot_be_written_to_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with context(small_cnn(), x=X) as c:
        found = counting(c, tmp_path / "file" / "below")[0].observe(ir.from_proto(small_cnn()), WANTED)
    assert found["c1"][0].low < 0


def test_the_folder_is_the_users_to_choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path))
    assert observe.cache_folder() == tmp_path
    monkeypatch.setenv("GRAPHOPT_CACHE", "off")
    assert observe.cache_folder() is None
    monkeypatch.delenv("GRAPHOPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert observe.cache_folder() == tmp_path / "xdg" / "graphopt"


def test_a_fingerprint_is_of_the_graph_and_the_weights_and_of_no_file(tmp_path: Path) -> None:
    first = load(write(small_cnn(), tmp_path / "a.onnx"))
    known = fingerprint(first)
    assert fingerprint(load(write(small_cnn(), tmp_path / "b.onnx"))) == known
    assert fingerprint(clone(first)) == known
    assert fingerprint(load(write(small_cnn(seed=1), tmp_path / "c.onnx"))) != known
    renamed = clone(first)
    renamed.graph.node(0).name = "other"
    assert fingerprint(renamed) != known
