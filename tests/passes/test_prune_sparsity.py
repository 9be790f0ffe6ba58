"""``prune.sparsity``: which weights become zero, how the others make up for them, and how zeros are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from graphopt import model
from graphopt.passes.prune import PruneSparsity
from graphopt.passes.prune.sparse import Pattern, settled, sparse

from channels import Net
from helpers import run
from observing import context
from pruning import correlated, error


def network() -> ir.Model:
    net = Net(x=["N", 8, 8, 8])
    hidden = net("Relu", net.conv("x", 8, 16))
    return net.model(net.linear(net("Flatten", net("GlobalAveragePool", net.conv(hidden, 16, 32))), 32, 16))


def made(before: ir.Model, **options: object) -> ir.Model:
    """Sparse as the options say, as harshly as is offered."""
    with context(before, x=correlated(96, 8, rank=5)) as given:
        rewrite = PruneSparsity(PruneSparsity.Options(**options))
        candidate = model.clone(before)
        plan = {site: site.settings[-1] for site in rewrite.sites(before, given) if site.settings}
        rewrite.apply(candidate, plan, given)
    model.check(candidate)
    return candidate


def weights(after: ir.Model) -> list[np.ndarray]:
    layers = [node.inputs[1] for node in after.graph if node.op_type in {"Conv", "MatMul"}]
    return [value.const_value.numpy() for value in layers if value is not None and value.const_value is not None]


def test_the_stated_part_of_each_layer_is_zero() -> None:
    for array in weights(made(network(), amount=0.6)):
        assert (array == 0).mean() == pytest.approx(0.6, abs=0.01)


def test_operators_have_parts_of_their_own() -> None:
    first, second, last = weights(made(network(), amount=0.5, amounts={"MatMul": 0.25, "Conv": 0.75}))
    assert (first == 0).mean() == pytest.approx(0.75, abs=0.01)
    assert (second == 0).mean() == pytest.approx(0.75, abs=0.01)
    assert (last == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_globally_layers_lose_different_parts_and_all_together_the_stated_one() -> None:
    parts = [(array == 0, array.size) for array in weights(made(network(), amount=0.6, scope="global"))]
    shares = [zero.mean() for zero, _ in parts]
    assert max(shares) - min(shares) > 0.02
    assert sum(zero.sum() for zero, _ in parts) / sum(size for _, size in parts) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_a_pattern_holds_along_the_channels_that_an_output_reads(pattern: str) -> None:
    kept, of = map(int, pattern.split(":"))
    for array in weights(made(network(), pattern=pattern)):
        rows = np.moveaxis(array, 1, -1) if array.ndim == 4 else array.T  # [..., what is read]
        counts = (rows.reshape(*rows.shape[:-1], -1, of) != 0).sum(axis=-1)
        assert counts.max() <= kept


def test_yaml_reads_two_to_four_as_a_time_and_it_is_taken_as_a_pattern() -> None:
    assert PruneSparsity.Options.model_validate({"pattern": 124}).pattern == "2:4"  # type: ignore[attr-defined]


@pytest.mark.parametrize("criterion", ["reconstruction", "wanda", "magnitude"])
def test_the_weights_that_stay_make_up_for_those_that_go(criterion: str) -> None:
    before, held_out = network(), {"x": correlated(32, 8, rank=5, seed=5)}
    fitted, cut = (made(before, amount=0.6, criterion=criterion, reconstruct=on) for on in (True, False))
    assert error(before, fitted, held_out) < 0.5 * error(before, cut, held_out)


@settings(max_examples=25, deadline=None)
@given(k=st.integers(2, 300), out=st.integers(1, 9), part=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_any_layer_gets_the_stated_number_of_zeros_and_fitting_keeps_them(k: int, out: int, part: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((k, out))
    rows = rng.standard_normal((2 * k, max(k // 2, 1))) @ rng.standard_normal((max(k // 2, 1), k))
    moments = rows.T @ rows / len(rows)

    for criterion in ("magnitude", "wanda"):
        cut, fitted = (sparse(matrix, moments, part, criterion, fit=on) for on in (False, True))  # type: ignore[arg-type]
        assert ((cut == 0) == (fitted == 0)).all()
    thin = sparse(matrix, moments, part, "reconstruction")
    assert abs((thin == 0).mean() - part) <= 0.5 / k + 0.02

    def lost(weights: np.ndarray) -> float:
        ridge = 0.01 * np.trace(moments) / k * np.eye(k)
        return float(np.einsum("ko,kl,lo->", weights - matrix, moments + ridge, weights - matrix))

    settled_ = settled(matrix, moments, thin)
    assert not settled_[thin == 0].any()
    assert lost(settled_) <= lost(thin) * (1 + 1e-9)


def test_each_layer_makes_up_for_the_zeros_of_those_before_it() -> None:
    net = Net(x=["N", 8, 8, 8])
    value = "x"
    for width, wider in ((8, 16), (16, 16), (16, 16), (16, 16), (16, 16)):
        value = net("Relu", net.conv(value, width, wider))
    before, held_out = net.model(value), {"x": correlated(32, 8, rank=5, seed=5)}
    fitted, cut = (made(before, amount=0.8, reconstruct=on) for on in (True, False))
    assert error(before, fitted, held_out) < 0.3 * error(before, cut, held_out)


def test_sparse_files_are_smaller_load_and_give_the_same(tmp_path: Path) -> None:
    before = network()
    dense, stored = (made(before, amount=0.9, store=store) for store in ("dense", "sparse"))
    files = [model.save(one, tmp_path / f"{name}.onnx") for name, one in (("dense", dense), ("sparse", stored))]
    assert files[1].bytes < 0.6 * files[0].bytes
    proto = onnx.load(files[1].path)
    assert len(proto.graph.sparse_initializer) == 3
    proto.graph.output[0].type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(proto)
    feed = {"x": correlated(2, 8, rank=5)}
    for one, other in zip(run(onnx.load(files[0].path), feed).values(), run(proto, feed).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    again = model.save(model.load(files[1].path), tmp_path / "again.onnx")
    assert again.bytes == pytest.approx(files[1].bytes, rel=0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pattern": "5:4"}, "no pattern"),
        ({"pattern": "2:4", "amount": 0.5}, "same everywhere"),
        ({"amounts": {"Relu": 0.5}}, "no operator with weights"),
        ({"amounts": {"Conv": 1.5}}, "not a part"),
    ],
)
def test_wrong_options_are_explained(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PruneSparsity.Options(**options)


def test_a_pattern_is_read_as_kept_of_all() -> None:
    assert Pattern.parse("2:4") == Pattern(2, 4)
