"""Leave whole what the runtime has a kernel for.

    x (1 + erf(x / sqrt(2))) 0.5                     a Gelu, before opset 20
    (x - mean(x)) / sqrt(variance(x) + epsilon) gamma + beta     a LayerNormalization, before opset 17
    x / sqrt(mean(x^2) + epsilon) gamma              an RMSNormalization, before opset 23

Runtimes make one kernel of these when they load a model. A rule that takes their last factor or shift, because it changes
nothing (gamma = 1) or fits into the weights behind, saves no work then: without its end the pattern is not known, and each of
its nodes runs. Only the end is at risk: x is read twice, so that nothing before it can be folded.
"""

from __future__ import annotations

import onnx_ir as ir

from .activation import gelu
from .graph import Work
from .normalize import ends_normalization


def ends_kernel(work: Work, node: ir.Node) -> bool:
    """Whether a node is the last of those that the runtime computes as one."""
    return ends_normalization(work, node) or gelu(work, node) is not None
