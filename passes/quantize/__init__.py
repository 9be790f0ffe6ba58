"""``quantize.*``: integers in place of floats.

static     activations and weights, with scales that calibration gives: ``operators`` says what can be, ``network`` how integers
           flow, ``ranges`` and ``weights`` how scales are chosen, ``place`` where Q and DQ go, ``scheme`` what they compute;
           ``layers`` makes the integers of weights, ``refine`` decides on learned ``rounding`` and on the ``correct``ion of
           biases, ``saturate`` finds sums that need weights of 7 bits
dynamic    weights, and inputs by the range that they have in each run: ``readers`` says what shares weights, ``integers`` how
           each operator is written
equalize,  scales of channels move between layers beforehand: ``scaling`` and ``homogeneous`` say where they can, ``balance``
smooth     chooses them, ``fake`` measures what they gain
"""

from __future__ import annotations

from .dynamic import DynamicOptions, DynamicQuantize
from .equalize import BalanceOptions, Equalize
from .smooth import Smooth
from .static import StaticOptions, StaticQuantize

__all__ = [
    "BalanceOptions",
    "DynamicOptions",
    "DynamicQuantize",
    "Equalize",
    "Smooth",
    "StaticOptions",
    "StaticQuantize",
]
