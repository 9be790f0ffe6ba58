"""Profiles of onnxruntime: a Chrome trace of several runs -> the median self time of each node of the optimized graph.

The self time of a node with a body (If, Loop, Scan) is its time without its body's nodes: events are nested by their times.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from graphopt.contracts import NodeTime
from graphopt.errors import ModelError

_RENAMED = re.compile(r"_nchwc$|_token_\d+$|/duplicated$")
"""What onnxruntime appends to the name of a node, or of its output, when it replaces the node by another of its own."""
_INTEGER = re.compile(r"^(QLinear|QGemm|QAttention|MatMulInteger|ConvInteger|DynamicQuantize(MatMul|LSTM)|MatMulNBits)")
"""Operators of the optimized graph that compute in integers."""


def node_times(trace: Sequence[Mapping[str, Any]], rounds: int) -> list[NodeTime]:
    """Self time per node, the median of the last ``rounds`` runs of a profile (Chrome trace events, times in us)."""
    starts = sorted(event["ts"] for event in trace if event.get("name") == "model_run")
    if len(starts) < rounds:  # onnxruntime keeps the first million events only
        raise ModelError("it executes too many nodes in a run to be profiled")
    starts = starts[-rounds:]
    events = [e for e in trace if e.get("cat") == "Node" and e["name"].endswith("_kernel_time") and e["ts"] >= starts[0]]
    events.sort(key=lambda event: (event["ts"], -event["dur"]))  # a node with a body comes before the body's nodes
    total: dict[tuple[str, str, str], list[float]] = {}
    around: list[tuple[int, int, tuple[str, str, str]]] = []  # end, run and key of the nodes that are still running
    for event in events:
        fields = event["args"]
        op_type = fields["op_name"]
        name = event["name"].removesuffix("_kernel_time") or f"{op_type} #{fields['node_index']}"
        key = (name, op_type, fields["provider"])
        run = bisect.bisect_right(starts, event["ts"]) - 1
        while around and around[-1][0] <= event["ts"]:
            around.pop()
        if around:
            _, outer_run, outer = around[-1]
            total[outer][outer_run] -= event["dur"]
        total.setdefault(key, [0.0] * rounds)[run] += event["dur"]
        around.append((event["ts"] + event["dur"], run, key))
    return [
        NodeTime(*key, max(0.0, median(us)) / 1000, _RENAMED.sub("", key[0]), _INTEGER.match(key[1]) is not None)
        for key, us in total.items()
    ]
