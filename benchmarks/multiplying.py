"""What part of a model's time its multiplications take: how much a rewrite that leaves them alone could save at most.

Run as a script with the original and the candidate; prints one line of JSON.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from graphopt import targets
from graphopt.registry import runtime

from judging import feeds, opened

RUNS = 20
"""Of each file; the kernels' medians count."""
_MULTIPLYING = re.compile(r"Conv|Gemm|MatMul|LSTM|GRU|RNN|Attention|Einsum")
"""Kernels that multiply matrices, with what onnxruntime fused into them."""


def main(original: Path, candidate: Path) -> dict[str, float]:
    """Milliseconds of the kernels that multiply, and what part of all kernels that is, in both files, by the profiler."""
    with opened(original) as session:
        _, feed = next(feeds(original, session))
    target, found = targets.load("cpu"), {}
    for name, path in (("before", original), ("after", candidate)):
        times = runtime(target.runtime).profile(path, target, feed, RUNS)
        multiplying = sum(time.milliseconds for time in times if _MULTIPLYING.search(time.op_type))
        found[f"multiplying_{name}_ms"] = multiplying
        found[f"multiplying_{name}_part"] = multiplying / sum(time.milliseconds for time in times)
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
