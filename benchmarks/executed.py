"""What onnxruntime executes of two files: the time of what multiplies, and which of its fusions the second no longer gets.

The first bounds what a rewrite can save that leaves multiplications alone; the second shows where one broke up a pattern that
the runtime has a kernel for. Run as a script with the original and the candidate; prints one line of JSON.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from graphopt import model, targets
from graphopt.registry import runtime

from judging import feeds, opened

RUNS = 20
"""Of each file; the kernels' medians count."""
_MULTIPLYING = re.compile(r"Conv|Gemm|MatMul|LSTM|GRU|RNN|Attention|Einsum")
"""Kernels that multiply matrices, with what onnxruntime fused into them."""
_NO_FUSION = re.compile(r"Reorder|Mem[a-z]*py")
"""Kernels that the runtime adds and that compute nothing."""


def main(original: Path, candidate: Path) -> dict[str, Any]:
    """Milliseconds of the kernels that multiply, and their part of all, in both files, by the profiler; and what is ``gone``.

    That is, for each operator that the original's opset has not, but the runtime made of others: its nodes there and in the
    candidate, if those are fewer.
    """
    with opened(original) as session:
        _, feed = next(feeds(original, session))
    target, found, kernels = targets.load("cpu"), {}, []
    for name, path in (("before", original), ("after", candidate)):
        times = runtime(target.runtime).profile(path, target, feed, RUNS)
        multiplying = sum(time.milliseconds for time in times if _MULTIPLYING.search(time.op_type))
        found[f"multiplying_{name}_ms"] = multiplying
        found[f"multiplying_{name}_part"] = multiplying / sum(time.milliseconds for time in times)
        kernels.append(Counter(time.op_type for time in times if not _NO_FUSION.match(time.op_type)))
    before, after = kernels
    opset = model.opset(model.load(original))
    gone = {
        kind: (count, after[kind]) for kind, count in before.items() if count > after[kind] and not onnx.defs.has(kind, opset)
    }
    return found | {"gone": gone}


if __name__ == "__main__":
    print("\n" + json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
