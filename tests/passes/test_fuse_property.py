"""Random valid models go through ``simplify`` and ``fuse``: the same answers, a valid graph, and nothing left to do."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings

import random_graphs
from fusing import fused
from helpers import assert_same_outputs
from simplifying import simplify


@settings(max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs.models())
def test_any_graph_gives_the_same_answers_when_fused(model: onnx.ModelProto):
    simple, _ = simplify(model)
    feeds = [random_graphs.feed(1, flag=True), random_graphs.feed(3, flag=False)]
    feeds.append({**random_graphs.feed(2, flag=True), "w": np.array(-3, np.float32)})
    result = fused(simple, *feeds, rtol=1e-5)
    for feed in feeds:
        assert_same_outputs(model, result, feed)
