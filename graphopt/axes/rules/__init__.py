"""What each operator says of the ids on its inputs' and outputs' axes.

A rule is a function of the analysis and a node; its docstring is its algebra, in the words of ``analysis``. To add one, write
it into the module of its kind and name its operators in the decorator.
"""

from __future__ import annotations

from . import (
    attention,
    convolution,
    elementwise,
    matmul,
    normalization,
    quantization,
    recurrent,
    reduction,
    reshape,
    select,
    sizes,
)
from .table import RULES

__all__ = ["RULES"]

_KINDS = (
    attention,
    convolution,
    elementwise,
    matmul,
    normalization,
    quantization,
    recurrent,
    reduction,
    reshape,
    select,
    sizes,
)
