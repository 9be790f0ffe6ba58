"""Rounding and bias correction bring a quantized model nearer to the float one, and run only where they do."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.passes.quantize import StaticOptions, StaticQuantize, correct, rounding

from fusing import model, normal
from helpers import run
from observing import context
from quantizing import quantize, run_optimized, sqnr


def correlated(count: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3)) @ rng.standard_normal((3, size)) + 0.3 * rng.standard_normal((count, size))


def output_error(weight: np.ndarray, integers: np.ndarray, scale: np.ndarray, x: np.ndarray) -> float:
    return float(np.mean((x @ (weight - integers * scale[:, None]).T) ** 2))


def test_learned_rounding_beats_nearest_where_inputs_are_correlated() -> None:
    weight = normal(8, 32)
    scale = np.abs(weight).max(axis=1) / 7
    x, unseen = np.split(correlated(1500, 32), [500])
    learned = rounding.learn(weight, scale, np.zeros(1), (-7, 7), (x.T @ x / len(x))[None])
    nearest = np.rint(weight / scale[:, None])
    assert np.abs(learned.integers).max() <= 7
    assert np.abs(learned.integers - weight / scale[:, None]).max() < 1  # up or down, no further
    assert learned.nearest_error == pytest.approx(output_error(weight, nearest, scale, x))
    assert learned.error == pytest.approx(output_error(weight, learned.integers, scale, x))
    assert learned.error < 0.3 * learned.nearest_error
    assert output_error(weight, learned.integers, scale, unseen) < 0.3 * output_error(weight, nearest, scale, unseen)


def test_learned_rounding_is_the_best_of_all_where_all_can_be_tried() -> None:
    weight, scale = normal(4, 8, seed=3), np.full(4, 0.5)
    x = correlated(200, 8, seed=1)
    gram = x.T @ x / len(x)
    learned = rounding.learn(weight, scale, np.zeros(1), (-127, 127), gram[None])
    low = np.floor(weight / scale[:, None])
    for row in range(4):
        choices = low[row] + np.array(np.meshgrid(*[[0, 1]] * 8)).reshape(8, -1).T
        wrong = choices * 0.5 - weight[row]
        best = np.einsum("ij,jk,ik->i", wrong, gram, wrong).min()
        found = learned.integers[row] * 0.5 - weight[row]
        assert found @ gram @ found <= 1.15 * best


def test_where_inputs_are_uncorrelated_nearest_stays() -> None:
    weight = normal(5, 3, 3, 3)
    learned = rounding.learn(weight, np.full(5, 0.3), np.zeros(1), (-127, 127), np.eye(27)[None])
    np.testing.assert_array_equal(learned.integers, np.rint(weight / np.float32(0.3)))


def test_each_group_of_a_convolution_has_its_own_inputs() -> None:
    weight = normal(6, 1, 3, 3)
    scale = np.abs(weight).reshape(6, -1).max(axis=1) / 7
    x = [correlated(300, 9, seed) for seed in range(6)]
    gram = np.stack([part.T @ part / 300 for part in x])
    together = rounding.learn(weight, scale, np.zeros(1), (-7, 7), gram)
    for group in range(6):
        alone = rounding.learn(
            weight[group : group + 1], scale[group : group + 1], np.zeros(1), (-7, 7), gram[group : group + 1]
        )
        np.testing.assert_array_equal(alone.integers, together.integers[group : group + 1])


def network(seed: int = 0) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Three Conv, one without a bias, a residual sum and a Gemm, on inputs whose channels are correlated."""
    proto = model(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu(a) c = Conv <pads = [1, 1, 1, 1]> (r, v) s = Add(c, r) t = Relu(s) "
        "d = Conv <group = 8, pads = [1, 1, 1, 1]> (t, u, e) p = GlobalAveragePool(d) f = Flatten(p) y = Gemm(f, g, h)",
        outputs="float[N, K] y",
        w=normal(8, 4, 3, 3, seed=seed + 1),
        b=normal(8, seed=seed + 2),
        v=normal(8, 8, 3, 3, seed=seed + 3),
        u=normal(8, 1, 3, 3, seed=seed + 4),
        e=normal(8, seed=seed + 5),
        g=normal(8, 5, seed=seed + 6),
        h=normal(5, seed=seed + 7),
    )
    x = correlated(64 * 64, 4, seed).reshape(64, 64, 4).transpose(0, 2, 1).reshape(64, 4, 8, 8).astype(np.float32)
    return proto, {"x": x}


def means(proto: onnx.ModelProto, feed: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Means of each channel of inner values, without the runtime's optimizations."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    found = run(proto, feed)
    return {name: array.mean(axis=tuple(i for i in range(array.ndim) if i != 1)) for name, array in found.items()}


def test_bias_correction_takes_the_mean_error_of_every_layer_away() -> None:
    proto, feed = network()
    feed = {"x": feed["x"] + 5}  # errors of weights have a mean where inputs have one
    names = ["a", "c", "d"]
    expected = means(proto, feed, names)
    fixed = {"rounding": "nearest", "weight_bits": 7, "recovery_samples": 128}
    twice = {"x": np.concatenate([feed["x"], feed["x"]])}  # half is learned from
    plain = means(quantize(proto, twice, bias_correction="off", **fixed).proto, feed, names)
    corrected = quantize(proto, twice, bias_correction="on", **fixed).proto
    onnx.checker.check_model(corrected, full_check=True)
    found = means(corrected, feed, names)
    for name in names:
        assert np.abs(found[name] - expected[name]).max() < 0.2 * np.abs(plain[name] - expected[name]).max(), name


def test_shifts_bring_means_to_zero_error_with_what_came_before_corrected() -> None:
    proto, feed = network()
    quantized = quantize(proto, feed, bias_correction="off", rounding="nearest").proto
    with context(proto, **feed) as made:
        outputs = [correct.Output("a", 1), correct.Output("c", 1), correct.Output("d", 1)]
        found = correct.shifts(ir.from_proto(proto), ir.from_proto(quantized), outputs, made, 64)
    expected, plain = (means(p, feed, ["a"]) for p in (proto, quantized))
    np.testing.assert_allclose(found["a"], expected["a"] - plain["a"], atol=1e-5)
    assert {name: shift.shape for name, shift in found.items()} == dict.fromkeys("acd", (8,))


@pytest.mark.parametrize("bias_correction", ["on", "off"])
@pytest.mark.parametrize("rounds", ["adaround", "nearest"])
def test_what_is_asked_for_is_done_without_measuring(rounds: str, bias_correction: str) -> None:
    proto, feed = network()
    result = quantize(proto, feed, rounding=rounds, bias_correction=bias_correction)
    assert not [change for change in result.changes if "dB" in change.why]
    assert sqnr(run_optimized(proto, feed)["y"], run_optimized(result.proto, feed)["y"]) > 25


def test_auto_says_what_each_gains_and_keeps_only_that() -> None:
    proto, feed = network()
    result = quantize(proto, feed)
    said = [change for change in result.changes if "dB" in change.why]
    assert len(said) == 2
    kept = {"rounding": "nearest", "bias_correction": "off"}
    for change in said:
        if change.done:
            kept |= {"rounding": "adaround"} if "AdaRound" in change.what else {"bias_correction": "on"}
    assert quantize(proto, feed, **kept).proto == result.proto


def test_a_second_plan_uses_what_the_first_one_learned() -> None:
    proto, feed = network()
    loaded = ir.from_proto(proto)
    with context(loaded, **feed) as made:
        rewrite = StaticQuantize(StaticOptions(rounding="adaround", bias_correction="on"))
        sites = [site for site in rewrite.sites(loaded, made) if site.settings]
        rewrite.apply(loaded.clone(), {site: site.settings[0] for site in sites}, made)
        opened = []
        watched = dataclasses.replace(made, open_session=lambda m: opened.append(m) or made.open_session(m), data=made.data)
        candidate = loaded.clone()
        rewrite.apply(candidate, {sites[0]: sites[0].settings[0]}, watched)
    assert len(opened) <= 1  # ranges, where they are not kept
    assert sum(node.op_type == "QuantizeLinear" for node in candidate.graph) >= 1
