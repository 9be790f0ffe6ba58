"""Rows that a layer reads and gives, of a whole batch at once: chosen positions of each sample.

x [group, n, k]: patches of a Conv in the order of its weight's axes, or vectors along the last axis
t [group, n, out / group]: what the layer gives there
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphopt.contracts import Array
from graphopt.observe import Patches
from graphopt.observe.gram import pads


def positions(output: Array, asked: Patches | None) -> int:
    """How many positions a sample of a layer's output has; of vectors, how many there are in the whole batch."""
    return math.prod(output.shape[2:]) if asked else math.prod(output.shape[:-1])


def inputs(values: Array, asked: Patches | None, chosen: Array) -> Array:
    """Rows of a layer's input [batch, ...] at the positions ``chosen``."""
    if asked is None:
        return np.asarray(values.reshape(-1, values.shape[-1])[chosen][np.newaxis])
    batch, channels, *spatial = values.shape
    around = pads(asked, spatial)
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(asked.kernel, asked.dilations, strict=True)]
    padded = np.pad(values, [(0, 0), (0, 0), *around])
    axes = tuple(range(2, 2 + len(spatial)))
    steps = (slice(None), slice(None), *(slice(None, None, every) for every in (*asked.strides, *asked.dilations)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(extents), axis=axes)[steps]
    places: tuple[Any, ...] = (slice(None), slice(None), *np.unravel_index(chosen, windows.shape[2 : 2 + len(spatial)]))
    found: Array = windows[places]  # [batch, channels, chosen, *kernel]
    width = math.prod(asked.kernel)
    grouped = found.reshape(batch, asked.group, channels // asked.group, len(chosen), width)
    return grouped.transpose(1, 0, 3, 2, 4).reshape(asked.group, batch * len(chosen), -1)


def outputs(values: Array, asked: Patches | None, chosen: Array) -> Array:
    """Rows of a layer's output at the same positions."""
    if asked is None:
        return np.asarray(values.reshape(-1, values.shape[-1])[chosen][np.newaxis])
    batch, channels = values.shape[:2]
    found = values.reshape(batch, asked.group, channels // asked.group, -1)[..., chosen]
    return found.transpose(1, 0, 3, 2).reshape(asked.group, batch * len(chosen), -1)
