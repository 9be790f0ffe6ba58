"""Layers learn again to give what they gave before something ahead of them, or in them, was changed: by least squares on data.

squares     the best weights and bias from sums over rows
layers      which nodes multiply by a constant, how their weights lie, and which sum they go into
rows        what a layer reads and gives at chosen positions
sequence    layer by layer in topological order, with the error made so far taken into account
"""

from __future__ import annotations

from .layers import Layer, layer, layers
from .sequence import Put, Step, affected, best, fit_some, refit, samples_a_run
from .squares import Moments, centred, choose, fit, solve

__all__ = [
    "Layer",
    "Moments",
    "Put",
    "Step",
    "affected",
    "best",
    "centred",
    "choose",
    "fit",
    "fit_some",
    "layer",
    "layers",
    "refit",
    "samples_a_run",
    "solve",
]
