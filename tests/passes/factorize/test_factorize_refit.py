"""After a layer has become factors, they and what follows learn to give what the original gave."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.contracts import Setting, Site

from factorizing import Done, factorize, labelled, with_weights
from helpers import run

RNG = np.random.default_rng(5)
IMAGES = (RNG.standard_normal((96, 8, 9, 9)) + 0.5).astype(np.float32)


def _weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _residual() -> onnx.ModelProto:
    """Two convolutions with a shortcut around the second, and a third behind."""
    return with_weights(
        "g (float[N, 8, 9, 9] x) => (float[N, 8, 9, 9] y) {"
        " a = Conv <pads = [1, 1, 1, 1]> (x, u)\n r = Relu(a)\n c = Conv <pads = [1, 1, 1, 1]> (r, v, b)\n"
        " s = Add(c, r)\n t = Relu(s)\n y = Conv <pads = [1, 1, 1, 1]> (t, w) }",
        u=_weight(8, 8, 3, 3),
        v=_weight(8, 8, 3, 3),
        b=_weight(8, 1)[:, 0],
        w=_weight(8, 8, 3, 3),
    )


def _lost(before: onnx.ModelProto, after: onnx.ModelProto, name: str = "y") -> float:
    """On images that nothing was fitted to."""
    unseen = {"x": (np.random.default_rng(6).standard_normal((32, 8, 9, 9)) + 0.5).astype(np.float32)}
    wanted, found = run(before, unseen)[name], run(after, unseen)[name]
    return float(np.square(wanted - found).sum() / np.square(wanted).sum())


def _done(proto: onnx.ModelProto, **options: object) -> Done:
    return factorize(proto, labelled("spatial rank 4"), pass_options=options, x=IMAGES)


def test_the_error_of_the_whole_is_smaller_on_other_data() -> None:
    before = _residual()
    fitted, not_fitted = (_lost(before, _done(before, refit=on).proto) for on in (True, False))
    assert fitted < 0.9 * not_fitted


def _first(site: Site) -> Setting | None:
    return labelled("spatial rank 4")(site) if site.name == "a" else None


def test_a_layer_that_was_left_whole_makes_up_for_the_factors_before_it() -> None:
    before = _residual()
    fitted, not_fitted = (factorize(before, _first, pass_options={"refit": on}, x=IMAGES).proto for on in (True, False))
    assert _lost(before, fitted) < 0.9 * _lost(before, not_fitted)


@pytest.mark.parametrize("options", [{"refit": False}, {"method": "svd"}])
def test_without_refit_or_data_only_the_planned_layers_change(options: dict[str, object]) -> None:
    before = _residual()
    done = factorize(before, _first, pass_options=options, x=IMAGES)
    kept = {one.name: onnx.numpy_helper.to_array(one) for one in done.proto.graph.initializer}
    for one in before.graph.initializer:
        if one.name in {"v", "w", "b"}:
            np.testing.assert_array_equal(kept[one.name], onnx.numpy_helper.to_array(one))


def test_exact_factors_are_left_as_they_are() -> None:
    u = np.einsum("rih,orw->oihw", RNG.standard_normal((2, 8, 3)), RNG.standard_normal((8, 2, 3))).astype(np.float32)
    before = _residual()
    before.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(u, "u"))
    done = factorize(before, lambda site: labelled("spatial rank 2")(site) if site.name == "a" else None, x=IMAGES)
    assert _lost(before, done.proto) < 1e-6
