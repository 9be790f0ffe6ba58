"""Random valid models go through ``simplify``: the same answers, a valid graph, no more nodes, and nothing left to do."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings

import random_graphs
from simplifying import simplified


@settings(max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs.models())
def test_any_graph_gives_the_same_answers_at_every_batch_size(model: onnx.ModelProto):
    simplified(
        model,
        random_graphs.feed(1, flag=True),
        random_graphs.feed(3, flag=False),
        {**random_graphs.feed(2, flag=True), "w": np.array(-3, np.float32)},
    )
