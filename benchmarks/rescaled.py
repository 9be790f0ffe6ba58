"""A model with its channels rescaled by 2^U(-4, 4), without changing what it computes: the hard case for one scale per tensor.

Every class of channels that can be scaled is (``graphopt.passes.quantize.scaling``): residual streams as a whole, all others on
their own. The factors are powers of two times a float, so the outputs stay equal within rounding.

    python benchmarks/rescaled.py MODEL.onnx OUT.onnx [SEED]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import model as models
from graphopt.passes.quantize import scaling
from graphopt.passes.quantize.scales import FIXED

OCTAVES = 4.0


def rescale(model: ir.Model, seed: int = 0) -> int:
    """Rescale ``model`` in place; returns how many classes of channels were."""
    analysis = scaling.analyse(model)
    classes = [factor.ids for factor in analysis.factors]
    found = (
        np.unique(np.concatenate([analysis.roots(ids).reshape(-1) for ids in classes])) if classes else np.zeros(0, np.int64)
    )
    found = found[found != FIXED]
    scales = np.ones(analysis.count)
    scales[found] = 2.0 ** np.random.default_rng(seed).uniform(-OCTAVES, OCTAVES, len(found))
    scaling.apply(model, analysis, scales)
    return len(found)


def main() -> None:
    source, out, *rest = sys.argv[1:]
    model = models.load(source)
    count = rescale(model, *map(int, rest))
    models.save(model, Path(out))
    print(f"{count} classes of channels rescaled by 2^U(-{OCTAVES:g}, {OCTAVES:g})")


if __name__ == "__main__":
    main()
