"""Which layers are offered at which ranks, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.contracts import Site

from factorizing import factorize, labelled, low_rank, with_weights
from helpers import assert_same_outputs, run, small_cnn

RNG = np.random.default_rng(2)
X = RNG.standard_normal((6, 24)).astype(np.float32)
CLOSE = 2e-4


def _normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _numbers(site: Site) -> list[str]:
    return [setting.label for setting in site.settings]


def _offered(text: str, name: str, x: np.ndarray = X, **weights: np.ndarray) -> Site:
    proto = with_weights(text, other=_normal(24, 24), **weights)
    return factorize(proto, x=x).site(name)


BESIDE = "z = MatMul(x, other)"
"""A layer that can be factorized, so that there is something to do in each model."""


@pytest.mark.parametrize(
    ("body", "weights", "why"),
    [
        ("y = MatMul(w, x)", {"w": _normal(5, 6)}, "on the left"),
        ("t = Transpose <perm = [1, 0]> (x)\n y = MatMul(x, t)", {}, "computed"),
        ("y = MatMul(x, w)", {"w": _normal(24, 1)}, "below break-even"),
        ("y = MatMul(x, w)", {"w": _normal(24)}, "vector"),
        ("y = MatMul(x, w)", {"w": _normal(4, 24, 24)}, "3 axes"),
        ("y = MatMul(x, w)\n u = Add(w, w)\n v = ReduceSum(u)", {"w": _normal(24, 24)}, "read by something else"),
        ("y = MatMul(x, w)\n u = Gemm <transB = 1> (x, w)", {"w": _normal(24, 24)}, "as stored and transposed"),
    ],
)
def test_what_cannot_be_factorized_says_why(body: str, weights: dict[str, np.ndarray], why: str) -> None:
    text = f"g (float[6, 24] x) => (float[6, 24] z) {{ {body}\n {BESIDE} }}"
    site = _offered(text, "y", **weights)
    assert not site.settings
    assert why in site.why


def test_a_weight_that_a_caller_may_give_is_left_alone() -> None:
    text = "g (float[6, 24] x, float[24, 24] w) => (float[6, 24] z, float[6, 24] y) { y = MatMul(x, w)\n z = MatMul(x, other) }"
    proto = with_weights(text, w=_normal(24, 24), other=_normal(24, 24))
    done = factorize(proto, x=X)
    assert "a caller may give another" in done.site("y").why


def test_a_weight_that_is_an_output_is_left_alone() -> None:
    text = f"g (float[6, 24] x) => (float[6, 24] z, float[6, 24] y, float[24, 24] w) {{ y = MatMul(x, w)\n {BESIDE} }}"
    assert "output of the model" in _offered(text, "y", w=_normal(24, 24)).why


def test_depthwise_convolutions_are_declined_with_the_reason() -> None:
    x = _normal(3, 16, 6, 6)
    proto = with_weights(
        "g (float[N, 16, 6, 6] x) => (float[N, 16, 4, 4] y) { d = Conv <group = 16> (x, w)\n y = Conv(d, p) }",
        w=_normal(16, 1, 3, 3),
        p=_normal(16, 16, 1, 1),
    )
    done = factorize(proto, x=x)
    assert "depthwise" in done.site("d").why
    assert done.site("y").settings


def test_only_ranks_that_cost_less_are_offered_from_gentle_to_harsh() -> None:
    site = _offered(
        "g (float[6, 24] x) => (float[6, 24] z) { z = MatMul(x, other)\n y = MatMul(x, w) }", "y", w=_normal(24, 40)
    )
    ranks = [int(label.split()[1]) for label in _numbers(site)]
    assert ranks == sorted(ranks, reverse=True)
    assert max(ranks) < 24 * 40 / (24 + 40)


def test_ranks_of_wide_layers_fill_vectors() -> None:
    x = _normal(2, 256)
    site = factorize(
        with_weights("g (float[N, 256] x) => (float[N, 256] y) { y = MatMul(x, w) }", w=_normal(256, 256)), x=x
    ).site("y")
    assert all(int(label.split()[1]) % 8 == 0 for label in _numbers(site))


def test_two_factors_are_truncated_again_and_not_split() -> None:
    proto = with_weights(
        "g (float[N, 24] x) => (float[N, 32] y) { h = MatMul(x, p)\n y = MatMul(h, q) }",
        p=low_rank(RNG, 3, 24, 8),
        q=_normal(8, 32),
    )
    done = factorize(proto, labelled("rank 3"), x=X)
    assert done.operators == ["MatMul", "MatMul"]
    assert [tuple(one.dims) for one in done.proto.graph.initializer] == [(24, 3), (3, 32)]
    assert_same_outputs(proto, done.proto, {"x": X}, CLOSE)
    assert "(rank 8 before)" in done.changes[0].what


def test_factors_of_a_convolution_are_truncated_again_with_both_biases() -> None:
    x = _normal(3, 8, 9, 9)
    proto = with_weights(
        "g (float[N, 8, 9, 9] x) => (float[N, 16, 5, 5] y) "
        "{ h = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, p, a)\n y = Conv(h, q, b) }",
        p=low_rank(RNG, 3, 6, 72).reshape(6, 8, 3, 3),
        a=_normal(6),
        q=_normal(16, 6, 1, 1),
        b=_normal(16),
    )
    done = factorize(proto, labelled("rank 3"), x=x)
    assert done.operators == ["Conv", "Conv"]
    assert_same_outputs(proto, done.proto, {"x": x}, CLOSE)


def test_rows_and_columns_are_truncated_again() -> None:
    x = _normal(3, 8, 9, 10)
    columns, rows = _normal(3, 8, 3), _normal(16, 3, 3)
    mixed = _normal(6, 3)
    proto = with_weights(
        "g (float[N, 8, 9, 10] x) => (float[N, 16, 5, 10] y) { h = Conv <pads = [1, 0, 1, 0], strides = [2, 1]> (x, p)\n"
        " y = Conv <pads = [0, 1, 0, 1]> (h, q, b) }",
        p=np.einsum("rs,sik->rik", mixed, columns)[..., None],
        q=np.einsum("osk,sr->ork", rows, np.linalg.pinv(mixed))[:, :, None].astype(np.float32),
        b=_normal(16),
    )
    done = factorize(proto, labelled("spatial rank 3"), x=x)
    assert done.operators == ["Conv", "Conv"]
    assert_same_outputs(proto, done.proto, {"x": x}, CLOSE)


def test_factors_made_once_are_recognized_the_next_time() -> None:
    x = _normal(4, 3, 8, 8)
    once = factorize(small_cnn(channels=16), labelled("spatial rank 12"), x=x)
    again = factorize(once.proto, labelled("spatial rank 8"), x=x)
    assert once.operators == again.operators
    sizes = [next(iter(one.dims)) for one in again.proto.graph.initializer if tuple(one.dims)[2:] == (3, 1)]
    assert sizes == [8]
    assert np.isfinite(run(again.proto, {"x": x})["y"]).all()


def test_cp_is_offered_only_when_asked_for_and_to_small_convolutions() -> None:
    def kinds(inputs: int, **pass_options: object) -> set[str]:
        proto = with_weights(
            f"g (float[N, {inputs}, 5, 5] x) => (float[N, 16, 3, 3] y) {{ y = Conv (x, w) }}", w=_normal(16, inputs, 3, 3)
        )
        site = factorize(proto, labelled("spatial rank 4"), pass_options=pass_options, x=_normal(2, inputs, 5, 5)).site("y")
        return {label.split()[0] for label in _numbers(site)}

    assert "cp" not in kinds(16)
    assert "cp" in kinds(16, cp=True)
    assert "cp" not in kinds(96, cp=True)


def test_more_outer_products_lose_less_and_cost_more() -> None:
    x = _normal(4, 3, 8, 8)

    def kept(label: str) -> float:
        done = factorize(small_cnn(channels=16), labelled(label), pass_options={"cp": True}, x=x)
        return float(next(one.why for one in done.changes if one.done and "cp" in one.what).split()[1])

    ranks = [
        label
        for label in _numbers(factorize(small_cnn(channels=16), pass_options={"cp": True}, x=x).offered[1])
        if "cp" in label
    ]
    found = [kept(label) for label in ranks]
    assert found == sorted(found, reverse=True)
    assert found[0] > 95


def test_the_four_convolutions_of_cp_are_left_alone_the_next_time() -> None:
    x = _normal(4, 3, 8, 8)
    once = factorize(small_cnn(channels=16), labelled("cp rank 16"), pass_options={"cp": True}, x=x)
    again = factorize(once.proto, labelled("rank 2"), pass_options={"cp": True}, x=x)
    parts = [site for site in again.offered if "factor of a CP form" in site.why]
    assert [len(site.settings) for site in parts] == [0] * 4
    before, after = ({one.name: [*one.dims] for one in done.proto.graph.initializer} for done in (once, again))
    written = [name for name in before if "_cp" in name]
    assert len(written) == 4
    assert [after.get(name) for name in written] == [before[name] for name in written]


def test_names_inputs_outputs_and_metadata_stay() -> None:
    proto = with_weights("g (float[N, 24] x) => (float[N, 32] y) { y = MatMul(x, w) }", w=_normal(24, 32))
    proto.graph.node[0].name = "last"
    proto.metadata_props.add(key="who", value="me")
    done = factorize(proto, x=X)
    assert done.proto.graph.output[0] == proto.graph.output[0]
    assert done.proto.graph.node[-1].name == "last"
    assert done.proto.metadata_props[0].value == "me"


def test_a_layer_that_could_be_factorized_and_is_not_planned_says_why() -> None:
    proto = with_weights(
        "g (float[N, 24] x) => (float[N, 24] y) { a = MatMul(x, u)\n r = Relu(a)\n y = MatMul(r, v) }",
        u=_normal(24, 24),
        v=_normal(24, 24),
    )
    done = factorize(proto, lambda site: site.settings[0] if site.name == "a" else None, pass_options={"energy": 0.5}, x=X)
    assert [(one.site, one.done) for one in done.changes if one.what == "left alone"] == [("y", False)]
