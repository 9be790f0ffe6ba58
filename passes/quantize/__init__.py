"""``quantize.*``: integers in place of floats.

static     activations and weights, with scales that calibration gives: ``operators`` says what can be, ``network`` how integers
           flow, ``ranges`` and ``weights`` how scales are chosen, ``place`` where Q and DQ go, ``scheme`` what they compute
"""

from __future__ import annotations

from .static import StaticOptions, StaticQuantize

__all__ = ["StaticOptions", "StaticQuantize"]
