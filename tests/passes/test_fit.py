"""``fit``: what a target does not take is written in what it takes, with the same outputs, and only where that helps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphopt import partitions, targets
from graphopt.contracts import Change, Context
from graphopt.passes.fit import RULES, Fit, FitOptions
from graphopt.targets import Target

from fusing import model
from helpers import assert_same_outputs, from_text, graphopt, small_cnn, write
from simplifying import context as plain_context

EVERY_TYPE = ["float32", "float64", "int64", "int32", "bool", "uint8"]


def target(folder: Path, *missing: str, static: bool = False, max_rank: int = 8, **limits: Mapping[str, object]) -> Target:
    """A target whose provider takes all operators but some."""
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    operators = {name: limits.get(name) for name in sorted(names - {*missing})}
    fields = {"source": "a provider made for this test", "types": EVERY_TYPE, "static": static, "max_rank": max_rank}
    path = folder / f"{'-'.join([*missing, *limits]) or 'all'}-{max_rank}.yaml"
    path.write_text(yaml.safe_dump({**fields, "operators": operators}))
    return Target(name="device", summary="", runtime="onnxruntime", provider="Device", operators=str(path))


def context(device: Target, growth_bytes: int | None = None, exclude: Sequence[str] = ()) -> Context:
    def partition(candidate: ir.Model) -> partitions.Cut | None:
        return partitions.estimate(candidate, device)

    return replace(plain_context(growth_bytes, exclude), target=device, partition=partition)


def fit(proto: onnx.ModelProto, device: Target, **kwargs: object) -> tuple[onnx.ModelProto, list[Change]]:
    loaded = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    options = FitOptions(approximate=bool(kwargs.pop("approximate", True)))
    changes = Fit(options).apply(loaded, context(device, **kwargs))
    return ir.to_proto(loaded), [*changes]


def fitted(
    proto: onnx.ModelProto, device: Target, *feeds: Mapping[str, np.ndarray], rtol: float = 2e-6, **kwargs: object
) -> onnx.ModelProto:
    """Fit, and assert what holds for every model; ``feeds`` must give the same outputs."""
    onnx.checker.check_model(proto, full_check=True)
    result, changes = fit(proto, device, **kwargs)
    onnx.checker.check_model(result, full_check=True)
    assert [*result.graph.input] == [*proto.graph.input]
    assert [*result.graph.output] == [*proto.graph.output]
    before, after = (partitions.estimate(ir.from_proto(each), device) for each in (proto, result))
    assert before is not None
    assert after is not None
    if any(change.done for change in changes):
        assert len(after.left) < len(before.left)
        assert after.partitions <= (before.partitions or after.partitions)
    else:
        assert result.SerializeToString() == ir.to_proto(ir.from_proto(proto)).SerializeToString()
    _, changes = fit(result, device, **kwargs)
    assert not [change for change in changes if change.done]
    for feed in feeds:
        assert_same_outputs(proto, result, feed, rtol)
    return result


def operators(proto: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in proto.graph.node}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = "float[2, 4, 6, 6] x"
Y = "float[2, 4, 6, 6] y"
CASES: dict[str, tuple[onnx.ModelProto, dict[str, object]]] = {
    "Abs": (model("y = Abs(x)", X, Y), {}),
    "Neg": (model("y = Neg(x)", X, Y), {}),
    "Erf": (model("y = Erf(x)", X, Y), {}),
    "Gelu": (model("y = Gelu(x)", X, Y), {}),
    "Gelu-tanh": (model('y = Gelu<approximate = "tanh">(x)', X, Y), {}),
    "Gelu without Erf": (model("y = Gelu(x)", X, Y), {"missing": ("Gelu", "Erf")}),
    "HardSigmoid": (model("y = HardSigmoid<alpha = 0.3>(x)", X, Y), {}),
    "HardSwish": (model("y = HardSwish(x)", X, Y), {}),
    "HardSwish without HardSigmoid": (model("y = HardSwish(x)", X, Y), {"missing": ("HardSwish", "HardSigmoid")}),
    "Softplus": (model("y = Softplus(x)", X, Y), {}),
    "Sum": (model("y = Sum(x, w, x)", X, Y, w=normal(6)), {}),
    "Reciprocal": (model("y = Reciprocal(x)", X, Y), {}),
    "LayerNormalization": (
        model("y = LayerNormalization<axis = 2, epsilon = 0.01>(x, w, b)", X, Y, w=normal(6, 6), b=normal(6, 6, seed=1)),
        {},
    ),
    "LayerNormalization of version 17": (model("y = LayerNormalization(x, w)", X, Y, opset=17, w=normal(6)), {}),
    "RMSNormalization": (model("y = RMSNormalization(x, w)", X, Y, opset=23, w=normal(6)), {}),
    "InstanceNormalization": (model("y = InstanceNormalization(x, w, b)", X, Y, w=normal(4), b=normal(4, seed=1)), {}),
    "GroupNormalization": (
        model("y = GroupNormalization<num_groups = 2>(x, w, b)", X, Y, opset=21, w=normal(4), b=normal(4, seed=1)),
        {},
    ),
    "BatchNormalization": (
        model("y = BatchNormalization(x, w, b, m, v)", X, Y, w=normal(4), b=normal(4, seed=1), m=normal(4), v=normal(4) ** 2),
        {},
    ),
    "Pad": (model("y = Pad(x, p, c)", X, "float[2, 4, 7, 9] y", p=np.array([0, 0, 1, 1, 0, 0, 0, 2]), c=np.float32(3.5)), {}),
    "Pad-reflect": (
        model('y = Pad<mode = "reflect">(x, p)', X, "float[2, 4, 9, 9] y", p=np.array([0, 0, 2, 1, 0, 0, 1, 2])),
        {"Pad": {"attributes": {"mode": ["constant"]}}},
    ),
    "Pad-edge": (
        model('y = Pad<mode = "edge">(x, p, , a)', X, "float[2, 4, 6, 9] y", p=np.array([2, 1]), a=np.array([3])),
        {"Pad": {"attributes": {"mode": ["constant"]}}},
    ),
    "Flatten": (model("y = Flatten(x)", X, "float[2, 144] y"), {}),
    "Unsqueeze": (model("y = Unsqueeze(x, a)", X, "float[2, 1, 4, 6, 6] y", a=np.array([1])), {}),
    "Squeeze": (model("y = Squeeze(x, a)", "float[2, 1, 6] x", "float[2, 6] y", a=np.array([1])), {}),
    "Split": (
        model("y, z = Split<axis = 1>(x, s)", X, "float[2, 1, 6, 6] y, float[2, 3, 6, 6] z", s=np.array([1, 3])),
        {"Split": {"even": True}},
    ),
    "Gather": (model("y = Gather<axis = 1>(x, i)", X, "float[2, 6, 6] y", i=np.array(2)), {}),
    "Gather-negative": (model("y = Gather<axis = 1>(x, i)", X, "float[2, 2, 6, 6] y", i=np.array([-2, -1])), {}),
    "Softmax": (model("y = Softmax<axis = 1>(x)", X, Y), {"Softmax": {"last_axis": True}}),
    "Gemm": (
        model("y = Gemm<transB = 1, alpha = 0.5>(x, w, b)", "float[3, 6] x", "float[3, 5] y", w=normal(5, 6), b=normal(5)),
        {},
    ),
    "ReduceMean": (model("y = ReduceMean<keepdims = 0>(x, a)", X, "float[2, 4] y", a=np.array([2, 3])), {}),
    "GlobalAveragePool": (model("y = GlobalAveragePool(x)", X, "float[2, 4, 1, 1] y"), {}),
    "Conv": (
        model(
            "y = Conv<pads = [1, 2], strides = [2], dilations = [1], group = 2>(x, w, b)",
            "float[2, 4, 9] x",
            "float[2, 6, 5] y",
            w=normal(6, 2, 4),
            b=normal(6),
        ),
        {"Conv": {"ranks": [4]}},
    ),
    "MaxPool": (
        model("y = MaxPool<kernel_shape = [3], strides = [2]>(x)", "float[2, 4, 9] x", "float[2, 4, 4] y"),
        {"MaxPool": {"ranks": [4]}},
    ),
    "AveragePool": (
        model("y = AveragePool<kernel_shape = [3], pads = [1, 1]>(x)", "float[2, 4, 9] x", "float[2, 4, 9] y"),
        {"AveragePool": {"ranks": [4]}},
    ),
    "Transpose": (
        model(
            "r = Reshape(x, s) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) y = Reshape(t, u)",
            X,
            Y,
            s=np.array([2, 2, 2, 6, 6]),
            u=np.array([2, -1, 6, 6]),
        ),
        {"max_rank": 4},
    ),
}


def device_for(name: str, folder: Path) -> Target:
    needs = dict(CASES[name][1])
    missing = needs.pop("missing", ()) or (() if needs else (name.split("-", maxsplit=1)[0].split(maxsplit=1)[0],))
    return target(folder, *missing, **needs)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_written_in_others_with_the_same_outputs(name: str, tmp_path: Path) -> None:
    proto, device = CASES[name][0], device_for(name, tmp_path)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = [{"x": 3 * normal(*shape, seed=seed)} for seed in range(2)]
    result = fitted(proto, device, *feeds)
    after = partitions.estimate(ir.from_proto(result), device)
    assert after is not None
    assert (after.partitions, len(after.left)) == (1, 0), [left.why for left in after.sites]


def test_every_rule_has_a_case() -> None:
    assert {name.split("-")[0].split()[0] for name in CASES} == {*RULES}


def test_erf_is_right_everywhere(tmp_path: Path) -> None:
    proto = model("y = Erf(x)", "float[N] x", "float[N] y")
    x = np.concatenate([np.linspace(-6, 6, 20001), [0, 1e-30, -1e-30, 1e-8, np.inf, -np.inf, 1e30]]).astype(np.float32)
    fitted(proto, target(tmp_path, "Erf"), {"x": x}, rtol=4e-7)
    assert "Erf" in operators(fitted(proto, target(tmp_path, "Erf"), approximate=False))


@example(  # Neg pays only once HardSwish is written out, in a second round
    ["Abs", "Neg", "Abs", "Abs", "Abs", "Tanh", "Abs", "HardSwish"],
    {"Erf", "Abs", "Gelu", "Neg", "Tanh", "LayerNormalization", "Softplus", "HardSigmoid", "HardSwish"},
    33,
)
@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["Abs", "Neg", "Erf", "Gelu", "HardSwish", "Softplus", "Relu", "Softmax", "LayerNormalization", "Tanh"]
        ),
        min_size=1,
        max_size=8,
    ),
    st.sets(
        st.sampled_from(["Abs", "Neg", "Erf", "Gelu", "HardSwish", "Softplus", "LayerNormalization", "HardSigmoid", "Tanh"])
    ),
    st.integers(0, 99),
)
def test_random_chains_and_branches_keep_their_outputs(chosen: list[str], missing: set[str], seed: int) -> None:
    import tempfile

    rng = np.random.default_rng(seed)
    values, body = ["x"], []
    for index, op in enumerate(chosen):
        source = values[int(rng.integers(len(values)))]
        body.append(f"v{index} = {op}({source}, w)" if op == "LayerNormalization" else f"v{index} = {op}({source})")
        values.append(f"v{index}")
    joined = values[-1]
    body.append(f"y = Add({joined}, {values[int(rng.integers(len(values)))]})")
    proto = model("\n".join(body), "float[2, 3, 5] x", "float[2, 3, 5] y", w=normal(5))
    with tempfile.TemporaryDirectory() as folder:
        fitted(proto, target(Path(folder), *sorted(missing)), {"x": normal(2, 3, 5, seed=seed)}, rtol=2e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["reflect", "edge", "constant"]),
    st.lists(st.integers(2, 4), min_size=1, max_size=4),
    st.data(),
)
def test_any_padding_is_written_out_exactly(mode: str, shape: list[int], data: st.DataObject) -> None:
    import tempfile

    amounts = [data.draw(st.integers(0, size - 1)) for size in shape * 2]
    if not any(amounts):
        amounts[0] = 1
    given_shape, rank = ", ".join(map(str, shape)), len(shape)
    padded = ", ".join(str(size + amounts[i] + amounts[i + rank]) for i, size in enumerate(shape))
    proto = model(f'y = Pad<mode = "{mode}">(x, p)', f"float[{given_shape}] x", f"float[{padded}] y", p=np.array(amounts))
    with tempfile.TemporaryDirectory() as folder:
        result = fitted(proto, target(Path(folder), "Pad"), {"x": normal(*shape)}, rtol=0)
    assert "Pad" not in operators(result)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=5, max_size=6), st.randoms(use_true_random=False))
def test_any_shuffle_of_many_axes_keeps_its_outputs(shape: list[int], random: object) -> None:
    import tempfile

    order = [*range(len(shape))]
    random.shuffle(order)  # type: ignore[attr-defined]
    total = int(np.prod(shape))
    proto = model(
        f"r = Reshape(x, s) t = Transpose<perm = {order}>(r) y = Reshape(t, u)",
        f"float[{total}] x",
        f"float[1, {total}] y",
        s=np.array(shape),
        u=np.array([1, -1]),
    )
    with tempfile.TemporaryDirectory() as folder:
        fitted(proto, target(Path(folder), max_rank=4), {"x": normal(total)}, rtol=0)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(5, 9),
)
def test_any_1d_convolution_is_one_of_height_1(
    group: int, kernel: int, stride: int, dilation: int, before: int, after: int, length: int
) -> None:
    import tempfile

    out = (length + before + after - dilation * (kernel - 1) - 1) // stride + 1
    proto = model(
        f"y = Conv<group = {group}, kernel_shape = [{kernel}], strides = [{stride}], dilations = [{dilation}], "
        f"pads = [{before}, {after}]>(x, w)",
        f"float[2, {2 * group}, {length}] x",
        f"float[2, {3 * group}, {out}] y",
        w=normal(3 * group, 2, kernel),
    )
    with tempfile.TemporaryDirectory() as folder:
        result = fitted(proto, target(Path(folder), Conv={"ranks": [4]}), {"x": normal(2, 2 * group, length)})
    assert "Reshape" in operators(result)


def test_a_target_that_takes_everything_changes_nothing(tmp_path: Path) -> None:
    _, changes = fit(small_cnn(1), target(tmp_path))
    assert [(change.done, change.why) for change in changes] == [(False, "device takes all nodes")]


def test_a_rewrite_that_would_make_more_partitions_is_left_out(tmp_path: Path) -> None:
    # only the middle one of three in a row could be rewritten, which would make an island of it
    proto = from_text("g (float[2, 4] x) => (float[2, 4] y) { a = Relu(x) b = Sinh(a) c = Neg(b) d = Sinh(c) y = Relu(d) }")
    result, changes = fit(proto, target(tmp_path, "Sinh", "Neg"))
    assert "Neg" in operators(result)
    assert "there would be more partitions" in " ".join(change.why for change in changes)


def test_dynamic_shapes_are_named_as_the_reason_with_what_would_help(tmp_path: Path) -> None:
    proto = from_text("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    _, changes = fit(proto, target(tmp_path, static=True))
    assert "--set shapes.fix.NAME=SIZE" in changes[0].why


def test_shared_weights_stay_for_those_who_need_them(tmp_path: Path) -> None:
    proto = model("a = LayerNormalization(x, w) y = Mul(a, w)", "float[2, 6] x", "float[2, 6] y", w=normal(6))
    result = fitted(proto, target(tmp_path, "LayerNormalization"), {"x": normal(2, 6)})
    assert [each.name for each in result.graph.initializer].count("w") == 1


def test_bodies_and_what_they_capture_are_rewritten_too(tmp_path: Path) -> None:
    proto = from_text(
        """g (float[1, 4] x, bool c) => (float[1, 4] y) {
          a = Erf(x)
          y = If(c) <then_branch = t () => (float[1, 4] b) { b = Erf(a) }, else_branch = e () => (float[1, 4] d) { d = Neg(a) }>
        }"""
    )
    device = target(tmp_path, "Erf")
    for c in (True, False):
        result = fitted(proto, device, {"x": normal(1, 4), "c": np.array(c)})
    assert "Erf" not in str(result)


def test_an_output_that_is_read_too_keeps_its_name(tmp_path: Path) -> None:
    proto = from_text("g (float[2, 4] x) => (float[2, 4] a, float[2, 4] y) { a = Erf(x) y = Relu(a) }")
    fitted(proto, target(tmp_path, "Erf"), {"x": normal(2, 4)})


def test_excluded_nodes_are_left_alone(tmp_path: Path) -> None:
    proto = from_text("g (float[2, 4] x) => (float[2, 4] y) { y = Erf(x) }")
    proto.graph.node[0].name = "mine"
    assert operators(fit(proto, target(tmp_path, "Erf"), exclude=["mi*"])[0]) == {"Erf"}


def test_constants_that_are_too_large_are_not_made(tmp_path: Path) -> None:
    proto = CASES["Pad"][0]
    assert "Pad" in operators(fit(proto, target(tmp_path, "Pad"), growth_bytes=64)[0])


def test_the_recipe_prepares_a_file_for_a_target_that_is_not_here(tmp_path: Path) -> None:
    proto = model(
        "a = LayerNormalization(x, w) b = Gelu(a) y = MatMul(b, v)",
        "float[N, 6] x",
        "float[N, 3] y",
        w=normal(6),
        v=normal(6, 3),
    )
    source, out = write(proto, tmp_path / "m.onnx"), tmp_path / "out.onnx"
    asked = ("-o", out, "--target", "nnapi", "--recipe", "fit", "--set", "shapes.fix.N=1", "--json")
    refused = graphopt("optimize", source, *asked)
    assert refused.returncode == 6
    assert "--timing off" in refused.stderr
    done = graphopt("optimize", source, *asked, "--timing", "off")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "2 partitions became 1 partition" not in report["verdict"]
    assert report["validation"]["passed"]
    assert report["timing"] is None
    assert any("cannot run here" in note for note in report["notes"])
    told = [change["what"] for change in report["passes"][-1]["changes"]]
    assert "became 1 partition with 0 of" in told[0]
    assert any("On nnapi: 0 partitions" in note and "became 1 partition" in note for note in report["notes"])
    cut = partitions.estimate(ir.load(out), targets.load("nnapi"))
    assert cut is not None
    assert (cut.partitions, len(cut.left)) == (1, 0)
