"""``prune.channels.criterion=taylor`` and ``obd``: what gradients say of units, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import axes
from graphopt.contracts import Array
from graphopt.errors import MissingError, UsageError
from graphopt.passes.prune.gradients import scores

from channels import Net
from channels import feed as normal
from helpers import run
from observing import context
from pruning import prune

HIDDEN = 6


def classifier(probabilities: bool = False) -> ir.Model:
    """Hidden units 1 and 4 are read with weights of 0."""
    net = Net(x=["N", 3, 6, 6])
    read = net.rng.standard_normal((5, HIDDEN, 3, 3)).astype(np.float32) * 0.5
    read[:, [1, 4]] = 0
    hidden = net("Relu", net.conv("x", 3, HIDDEN))
    last = net("Conv", hidden, net.constant(read), pads=[1, 1, 1, 1])
    logits = net("Flatten", net("GlobalAveragePool", last))
    return net.model(net("Softmax", logits) if probabilities else logits)


def scored(model: ir.Model, criterion: str, **arrays: Array) -> dict[str, Array]:
    axes.prepare(model)
    groups = {group.name: group for group in axes.analyse(model).groups() if group.prunable}
    with context(model, **arrays) as made:
        return scores(model, groups, criterion, made, 10_000)


def logits(model: ir.Model, x: Array, unit: int, gate: float) -> Array:
    """Float64 logits [N, classes] with a unit multiplied where it is read."""
    candidate = model.clone()
    weight = [node for node in candidate.graph if node.op_type == "Conv"][1].inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[:, unit] *= gate
    weight.const_value = ir.tensor(array)
    [found] = run(candidate, {"x": x}).values()
    return found.astype(np.float64)


def slopes(model: ir.Model, x: Array) -> Array:
    """By how much each logit moves with each gate [units, N, classes]; the network is linear in them."""
    return np.stack([logits(model, x, unit, 1.5) - logits(model, x, unit, 0.5) for unit in range(HIDDEN)])


def softmax(found: Array) -> Array:
    powers = np.exp(found - found.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import registry, targets

    monkeypatch.setitem(sys.modules, "torch", None)
    registry.runtime.cache_clear()
    model = classifier()
    with pytest.raises(MissingError) as caught:
        prune(model, normal(model, 4), ratio=0.5, criterion="obd")
    assert caught.value.hint == targets.install_line(targets.load("torch")) == "pip install 'graphopt[torch]'"
    registry.runtime.cache_clear()


@pytest.mark.torch
class TestScores:
    @pytest.mark.parametrize("labelled", [True, False])
    def test_taylor_is_the_mean_square_of_the_losss_slope_by_the_gate(self, labelled: bool) -> None:
        model = classifier()
        x = normal(model, 40)["x"]
        p = softmax(logits(model, x, 0, 1.0))
        labels = np.arange(40) % 5 if labelled else p.argmax(axis=1)
        [found] = scored(model, "taylor", x=x, **({"labels": labels} if labelled else {})).values()
        by_logit = p - np.eye(5)[labels]
        expected = ((slopes(model, x) * by_logit).sum(axis=2) ** 2).mean(axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)

    @pytest.mark.parametrize("probabilities", [True, False])
    def test_obd_is_half_the_curvature_of_the_divergence(self, probabilities: bool) -> None:
        x = normal(classifier(), 3000)["x"]
        [found] = scored(classifier(probabilities), "obd", x=x).values()
        p, moved = softmax(logits(classifier(), x, 0, 1.0)), slopes(classifier(), x)
        variance = (p * moved**2).sum(axis=2) - (p * moved).sum(axis=2) ** 2
        np.testing.assert_allclose(found, variance.mean(axis=1) / 2, rtol=0.15, atol=1e-9)

    def test_obd_of_outputs_that_are_no_classes_is_how_far_they_move(self) -> None:
        net = Net(x=["N", 8])
        model = net.model(net.linear(net("Relu", net.linear("x", 8, 12)), 12, 4), net("Relu", net.linear("x", 8, 3)))
        [found] = scored(model, "obd", x=normal(model, 200)["x"]).values()
        assert (found > 0).all()

    def test_samples_are_kept_apart_where_the_batch_is_not_the_first_axis(self) -> None:
        def both(along: str) -> ir.Model:
            net = Net(x=["N", 4, 8])
            x = net("Reshape", "x", net.constant([-1, 8])) if along == "rows" else "x"
            hidden = net.linear(net("Relu", net.linear(x, 8, 12)), 12, 6)
            return net.model(net("ReduceMean", net("Reshape", hidden, net.constant([-1, 4, 6])), net.constant([1]), keepdims=0))

        rows, cubes = both("rows"), both("cubes")
        for criterion in ("taylor", "obd"):
            x = normal(rows, 64 if criterion == "taylor" else 512)["x"]
            [first], [second] = (scored(model, criterion, x=x).values() for model in (rows, cubes))
            np.testing.assert_allclose(first, second, rtol=1e-3 if criterion == "taylor" else 0.5)


@pytest.mark.torch
class TestPruning:
    @pytest.mark.parametrize("criterion", ["taylor", "obd"])
    def test_units_that_the_outputs_do_not_depend_on_go_first(self, criterion: str) -> None:
        model = classifier()
        given = normal(model, 32)
        after = prune(model, given, ratio=1 / 3, criterion=criterion, reconstruct=False).model
        [before], [left] = run(model, given).values(), run(after, given).values()
        np.testing.assert_allclose(left, before, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("criterion", ["taylor", "obd"])
    def test_heads_are_weighed_as_channels_are(self, criterion: str) -> None:
        net = Net(x=["N", 5, 16])
        heads = [
            net("Transpose", net("Reshape", net.linear("x", 16, 16), net.constant([0, 5, 4, 4])), perm=[0, 2, 1, 3])
            for _ in range(3)
        ]
        weights = net("Softmax", net("MatMul", heads[0], net("Transpose", heads[1], perm=[0, 1, 3, 2])), axis=-1)
        mixed = net("Reshape", net("Transpose", net("MatMul", weights, heads[2]), perm=[0, 2, 1, 3]), net.constant([0, 5, 16]))
        read = net.rng.standard_normal((16, 8)).astype(np.float32)
        read[4:8] = 0  # of the second head
        out = net("ReduceMean", net("MatMul", mixed, net.constant(read)), net.constant([1]), keepdims=0)
        model = net.model(out)
        given = normal(model, 32)
        after = prune(model, given, ratio=0.25, criterion=criterion, reconstruct=False).model
        [before], [left] = run(model, given).values(), run(after, given).values()
        np.testing.assert_allclose(left, before, rtol=1e-4, atol=1e-5)

    def test_taylor_of_outputs_that_are_no_classes_is_refused(self) -> None:
        net = Net(x=["N", 3, 8, 8])
        model = net.model(net.conv(net("Relu", net.conv("x", 3, 8)), 8, 4))
        with pytest.raises(UsageError, match="no scores of classes") as caught:
            prune(model, normal(model, 8), ratio=0.5, criterion="taylor")
        assert caught.value.hint is not None
        assert "obd" in caught.value.hint
