"""onnxruntime's own operators, used only when asked for, and only where they are right and faster."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt import model as model_files
from graphopt import targets, timing
from graphopt.contracts import Array, Change, Context, Session, Silent
from graphopt.dataset.generate import generate
from graphopt.errors import UsageError
from graphopt.passes.fuse import Fuse, FuseOptions, contrib
from graphopt.runtimes.onnxruntime import OnnxRuntime

from fusing import listed_as_input, normal
from helpers import assert_same_outputs, from_text, write
from simplifying import context, operators

WIDTH, HEADS = 8, 2


def block(opset: int = 20, gelu: str = "Gelu(wide)") -> onnx.ModelProto:
    """A transformer's layer: x + attention, LayerNormalization, x + Gelu between two MatMuls, LayerNormalization."""
    rng = np.random.default_rng(0)
    inner = WIDTH // HEADS
    weights: dict[str, Array] = {
        name: rng.standard_normal((WIDTH, WIDTH)) * 0.3 for name in ("wq", "wk", "wv", "wo", "w1", "w2")
    }
    weights |= {name: rng.standard_normal(WIDTH) for name in ("bq", "bk", "bv", "bo", "b1", "b2", "g1", "g2", "h1", "h2")}
    weights |= {"scale": np.array(1 / math.sqrt(inner))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    arrays |= {"split": np.array([0, 0, HEADS, inner]), "join": np.array([0, 0, WIDTH])}
    heads = "".join(
        f"m{n} = MatMul(x, w{n}) a{n} = Add(m{n}, b{n}) r{n} = Reshape(a{n}, split)"
        f" {n} = Transpose<perm = [0, 2, {'3, 1' if n == 'k' else '1, 3'}]>(r{n}) "
        for n in "qkv"
    )
    proto = from_text(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[N, T, {WIDTH}] x) => (float[N, T, {WIDTH}] y) {{'
        f"{heads} qk = MatMul(q, k) scores = Mul(qk, scale) p = Softmax<axis = -1>(scores) mixed = MatMul(p, v)"
        " turned = Transpose<perm = [0, 2, 1, 3]>(mixed) joined = Reshape(turned, join) mo = MatMul(joined, wo)"
        " out = Add(mo, bo) sum1 = Add(x, out) norm1 = LayerNormalization<axis = -1>(sum1, g1, h1) m1 = MatMul(norm1, w1)"
        f" wide = Add(m1, b1) act = {gelu} m2 = MatMul(act, w2) back = Add(m2, b2) sum2 = Add(norm1, back)"
        " y = LayerNormalization<axis = -1>(sum2, g2, h2) }"
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


FEEDS = [{"x": normal(batch, time, WIDTH)} for batch, time in ((1, 5), (3, 7))]


def with_group(proto: onnx.ModelProto, group: str) -> tuple[onnx.ModelProto, dict[str, str]]:
    model = ir.from_proto(proto)
    made = contrib.apply_group(model, group)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto, made


@pytest.mark.parametrize(
    ("group", "made"),
    [
        ("norms", {"SkipLayerNormalization": 2}),
        ("attention", {"MultiHeadAttention": 1}),
        ("gelu", {"BiasGelu": 1}),
    ],
)
def test_each_group_gives_the_same_answers_at_every_size_and_passes_the_full_checker(group: str, made: dict[str, int]):
    result, sites = with_group(block(), group)
    assert {name: [*sites.values()].count(name) for name in sites.values()} == made
    assert [*result.graph.input] == [*block().graph.input]
    assert [*result.graph.output] == [*block().graph.output]
    for feed in FEEDS:
        assert_same_outputs(block(), result, feed)
    assert with_group(result, group)[1] == {}


def test_attention_takes_its_three_weights_in_one():
    separate, _ = with_group(block(), "attention")
    for before in (block(), separate):
        packed, made = with_group(before, "packed")
        assert [*made.values()] == ["Attention"]
        for feed in FEEDS:
            assert_same_outputs(block(), packed, feed)


def test_rms_normalizations_behind_skip_connections_become_one_operator_and_the_others_pass_the_checker():
    norm = (
        "{0}2 = Pow({0}, two) {0}m = ReduceMean<keepdims = 1, noop_with_empty_axes = 0>({0}2, last) {0}v = Add({0}m, e)"
        " {0}r = Sqrt({0}v) {0}i = Reciprocal({0}r) {0}n = Mul({0}, {0}i) {0}y = Mul({0}n, g) "
    )
    proto = from_text(
        f"g (float[N, T, {WIDTH}] x, float[N, T, {WIDTH}] z)"
        f" => (float[N, T, {WIDTH}] y) <float two = {{2.0}}, float e = {{0.001}}, int64[1] last = {{-1}}>"
        f"{{ {norm.format('x')} w = Tanh(xy) s = Add(w, z) {norm.format('s')} y = Add(sy, s) }}"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(WIDTH), "g"))
    result, made = with_group(proto, "norms")
    assert [*made.values()] == ["SkipSimplifiedLayerNormalization"]
    onnx.checker.check_model(result, full_check=True)
    for batch, time in ((1, 5), (3, 7)):
        assert_same_outputs(proto, result, {"x": normal(batch, time, WIDTH), "z": normal(batch, time, WIDTH, seed=1)})


def test_gelu_by_tanh_becomes_fast_gelu():
    proto = block(gelu='Gelu<approximate = "tanh">(wide)')
    result, made = with_group(proto, "gelu")
    assert [*made.values()] == ["FastGelu"]
    assert_same_outputs(proto, result, FEEDS[0])


def test_an_initializer_that_a_caller_may_override_is_no_constant():
    proto = listed_as_input(block(), "scale")
    result, made = with_group(proto, "attention")
    assert made == {}
    assert_same_outputs(proto, result, {**FEEDS[0], "scale": np.array(2, np.float32)})


# ------------------------------------------------------------------------------------------------- the pass, and its choice


class Opened:
    """A context whose sessions are onnxruntime's, as the pipeline gives it."""

    def __init__(self, folder: Path, proto: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> None:
        self.folder, self.count, self.stack = folder, 0, ExitStack()
        self.model = ir.from_proto(proto)
        with self.open(self.model) as session:
            data = generate(self.model, samples=2, runs=session.accepts)
        self.context = replace(context(exclude=exclude), open_session=self.open, data=data)

    def open(self, model: ir.Model) -> Session:
        self.count += 1
        path = model_files.save(model_files.clone(model), self.folder / f"{self.count}.onnx").path
        return OnnxRuntime().open(path, targets.load("cpu"))


def fused(opened: Opened) -> tuple[onnx.ModelProto, list[Change]]:
    changes = Fuse(FuseOptions(contrib=True)).apply(opened.model, opened.context)
    return ir.to_proto(opened.model), [*changes]


def always(speedup: float) -> object:
    def compare(*_: object, **__: object) -> timing.Comparison:
        return timing.Comparison(1, 1, speedup, speedup, speedup, 1, 1, "cpu", 9, 3, True, 1.0, 1, "CPUExecutionProvider")

    return compare


def domains(proto: onnx.ModelProto) -> set[str]:
    return {node.domain for node in proto.graph.node}


def test_what_is_faster_is_kept_and_the_report_says_by_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "compare", always(1.25))
    result, changes = fused(Opened(tmp_path, block()))
    assert {"Attention", "BiasGelu"} <= {*operators(result)}
    assert all("1.25 times as fast" in change.why for change in changes if "com.microsoft" in change.what)
    for feed in FEEDS:
        assert_same_outputs(block(), result, feed)


def test_what_is_not_faster_is_left_out_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "compare", always(0.9))
    result, changes = fused(Opened(tmp_path, block()))
    assert domains(result) == {""}
    assert any(change.what == "not used 1 MultiHeadAttention" and "0.90 times as fast" in change.why for change in changes)


def test_a_group_that_takes_an_excluded_node_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "compare", always(1.25))
    result, changes = fused(Opened(tmp_path, block(), exclude=("p",)))
    assert "Softmax" in operators(result)
    assert "BiasGelu" in operators(result)
    assert any("'p' is excluded" in change.why for change in changes)


def test_a_group_that_changes_an_answer_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    honest = contrib.apply_group

    def wrong(model: ir.Model, group: str) -> Mapping[str, str]:
        made = honest(model, group)
        for node in model.graph:
            if node.op_type == "BiasGelu":
                node.replace_input_with(1, model.graph.initializers["b2"])
        return made

    monkeypatch.setattr(timing, "compare", always(1.25))
    monkeypatch.setattr(contrib, "apply_group", wrong)
    result, changes = fused(Opened(tmp_path, block()))
    assert "BiasGelu" not in operators(result)
    assert any(change.what == "not used 1 BiasGelu" and "the outputs changed" in change.why for change in changes)


def test_without_being_asked_no_such_operator_is_used(tmp_path: Path):
    report = graphopt.optimize(write(block(), tmp_path / "m.onnx"), timing=False)
    assert report.passed
    assert domains(onnx.load(tmp_path / "m.opt.onnx")) == {""}


def test_the_command_line_asks_for_it_with_contrib(tmp_path: Path):
    path = write(block(), tmp_path / "m.onnx")
    command = [
        sys.executable,
        "-m",
        "graphopt",
        "optimize",
        str(path),
        "--contrib",
        "--timing",
        "off",
        "--verify",
        "off",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    fuse = next(row for row in json.loads(done.stdout)["passes"] if row["name"] == "fuse")
    assert fuse["options"] == {"contrib": True}
    assert any("cannot be measured" in change["why"] for change in fuse["changes"])


def test_a_target_of_another_runtime_is_refused(tmp_path: Path):
    elsewhere = Context(
        target=targets.load("cpu").model_copy(update={"name": "phone", "runtime": "other"}),
        open_session=lambda _model: pytest.fail("nothing is to be opened"),
        data=None,
        rng=np.random.default_rng(0),
        progress=Silent(),
    )
    with pytest.raises(UsageError, match="'phone' runs models with other"):
        Fuse(FuseOptions(contrib=True)).apply(ir.from_proto(block()), elsewhere)
