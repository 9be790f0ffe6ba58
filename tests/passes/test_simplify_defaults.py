"""Attributes that state what holds without them go; what they say otherwise stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import from_text
from simplifying import simplify

BODY = """<ir_version: 8, opset_import: ["" : {opset}]>
net (float[1,4,8,8] x) => (float[1,4,a,b] y)
<float[4,4,3,3] w = {weights}>
{{
  c = Conv <group = 1, auto_pad = "NOTSET", dilations = [1, 1], pads = [{pad}], strides = [1, 1], kernel_shape = [3, 3]> (x, w)
  y = MaxPool <ceil_mode = 0, kernel_shape = [2, 2], pads = [0, 0, 0, 0], storage_order = 0, strides = [2, 2]> (c)
}}"""


def network(pad: str = "1, 1, 1, 1", opset: int = 17) -> onnx.ModelProto:
    weights = np.random.default_rng(0).normal(size=144).astype(np.float32)
    return from_text(BODY.format(opset=opset, pad=pad, weights="{" + ", ".join(map(str, weights)) + "}"))


def attributes(model: onnx.ModelProto) -> list[set[str]]:
    return [{attribute.name for attribute in node.attribute} for node in model.graph.node]


def test_only_what_says_something_stays() -> None:
    result, changes = simplify(network())
    assert attributes(result) == [{"kernel_shape", "pads"}, {"kernel_shape", "strides"}]
    assert any(change.what == "dropped 7 attributes" for change in changes)


def test_pads_of_nothing_go() -> None:
    result, _ = simplify(network(pad="0, 0, 0, 0"))
    assert attributes(result)[0] == {"kernel_shape"}


@pytest.mark.parametrize("how", [{"opset": 10}, {"defaults": False}])
def test_they_stay_where_the_standard_is_not_clear_or_the_user_asks(how: dict[str, int]) -> None:
    proto = network(opset=how.get("opset", 17))
    result, _ = simplify(proto, **({} if "opset" in how else how))
    assert attributes(result) == attributes(proto)
