"""``simplify.freeze``: initializers that are inputs too become constants, and only then."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same_outputs, from_text
from simplifying import operators, simplify

TEXT = """g (float[N, 4] x, float[4] w, float[4] v) => (float[N, 4] y, float[4] v2)
<float[4] w = {1, 2, 3, 4}, float[4] v = {1, 1, 1, 1}> {
    a = Neg(w)  b = Add(x, a)  y = Mul(b, v)  v2 = Abs(v)
}"""
FEED = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)}


@pytest.mark.parametrize("ir_version", [3, 4, 10])
def test_frozen_initializers_are_constants_and_no_inputs(ir_version: int):
    model = from_text(f'<ir_version: {ir_version}, opset_import: ["" : 8]> {TEXT}')
    frozen, changes = simplify(model, freeze=True)
    onnx.checker.check_model(frozen, full_check=True)
    assert [value.name for value in frozen.graph.input] == ["x"]
    assert [value.name for value in frozen.graph.output] == ["y", "v2"]
    assert operators(frozen) == ["Add"]
    assert frozen.ir_version == max(4, ir_version)
    assert_same_outputs(model, frozen, FEED)
    assert sum("simplify.freeze" in change.why for change in changes) == 2
    assert [change for change in simplify(frozen, freeze=True)[1] if change.done] == []


def test_a_caller_can_override_them_unless_asked():
    model = from_text(f'<ir_version: 10, opset_import: ["" : 8]> {TEXT}')
    result, _ = simplify(model)
    assert [value.name for value in result.graph.input] == ["x", "w", "v"]
    assert_same_outputs(model, result, FEED | {"w": np.ones(4, np.float32), "v": np.zeros(4, np.float32)})


def test_an_excluded_initializer_stays_an_input():
    model = from_text(f'<ir_version: 10, opset_import: ["" : 8]> {TEXT}')
    result, _ = simplify(model, freeze=True, exclude=["v"])
    assert [value.name for value in result.graph.input] == ["x", "v"]
    assert_same_outputs(model, result, FEED | {"v": np.zeros(4, np.float32)})
