"""``quantize.*``: integers in place of floats.

static     activations and weights, with scales that calibration gives: ``operators`` says what can be, ``network`` how integers
           flow, ``ranges`` and ``weights`` how scales are chosen, ``place`` where Q and DQ go, ``scheme`` what they compute
dynamic    weights, and inputs by the range that they have in each run: ``readers`` says what shares weights, ``integers`` how
           each operator is written
"""

from __future__ import annotations

from .dynamic import DynamicOptions, DynamicQuantize
from .static import StaticOptions, StaticQuantize

__all__ = ["DynamicOptions", "DynamicQuantize", "StaticOptions", "StaticQuantize"]
