"""onnxsim as an engine: only when it is asked for, and its result keeps to the contract."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import pipeline
from graphopt.errors import MissingError, ModelError, UsageError
from graphopt.passes.simplify import peer

from helpers import assert_same_outputs, from_text, small_cnn, write
from simplifying import simplify

MODEL = from_text("g (float[N, 4] x) => (float[N, 4] y) { a = Identity(x)  y = Relu(a) }")


class Stand(ModuleType):
    """Stands for onnxsim, which the development environment does not have: gives what the test says it gives."""

    def __init__(self, result: onnx.ModelProto) -> None:
        super().__init__("onnxsim")
        self.result = result

    def simplify(self, _model: onnx.ModelProto, **_options: object) -> tuple[onnx.ModelProto, bool]:
        print("what it has to say")
        return self.result, True


def test_it_is_named_with_its_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(MissingError, match=r"graphopt\[onnxsim\]"):
        simplify(MODEL, engine="onnxsim")


def test_inputs_and_outputs_get_back_what_it_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        sys.modules, "onnxsim", Stand(from_text("other (float[1, 4] in) => (float[1, 4] out) { out = Relu(in) }"))
    )
    result, [change] = simplify(MODEL, engine="onnxsim")
    assert change.what == "2 nodes became 1"
    assert [*result.graph.input] == [*MODEL.graph.input]
    assert [*result.graph.output] == [*MODEL.graph.output]
    assert result.graph.name == "g"
    onnx.checker.check_model(result, full_check=True)
    assert capsys.readouterr().out == ""


def test_a_wrong_result_is_undone_like_that_of_any_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = from_text("g (float[N, 4] x) => (float[N, 4] y) { y = Neg(x) }")
    monkeypatch.setitem(sys.modules, "onnxsim", Stand(wrong))
    source = write(MODEL, tmp_path / "m.onnx")
    report = pipeline.optimize(source, tmp_path / "o.onnx", settings=["simplify.engine=onnxsim"], timing=False)
    assert not report.passes[0].kept
    assert "the outputs changed" in report.passes[0].why


def test_nothing_to_change_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_cnn()
    monkeypatch.setitem(sys.modules, "onnxsim", Stand(ir.to_proto(ir.from_proto(model))))
    result, [change] = simplify(model, engine="onnxsim")
    assert not change.done
    assert_same_outputs(model, result, {"x": np.ones((1, 3, 8, 8), np.float32)})


def test_what_it_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", Stand(MODEL))
    with pytest.raises(UsageError, match="cannot leave nodes alone"):
        simplify(MODEL, engine="onnxsim", exclude=["conv*"])
    monkeypatch.setattr(peer, "LIMIT_BYTES", 100)
    with pytest.raises(ModelError, match="onnxsim takes models with less than"):
        simplify(small_cnn(), engine="onnxsim")
