"""After pruning, the layers behind what went learn to give what the whole network gave (see ``graphopt.reconstruct``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.axes import Channels
from graphopt.axes.analysis import Kept
from graphopt.contracts import Array
from graphopt.reconstruct import Step, affected


def behind(
    original: ir.Model, pruned: ir.Model, channels: Channels, kept: Kept, stand_ins: Mapping[ir.Value, Sequence[str]]
) -> list[Step]:
    """The layers whose input is no longer what it was, or has fewer channels.

    Args:
        original: The model before.
        pruned: The same with units and blocks removed; values and nodes have the names that they have there.
        channels: Of ``pruned`` before the removal.
        kept: What stays.
        stand_ins: Values that stand for sums whose blocks were left out, with what of the original they are to learn as well.
    """
    cut = {one.node for one in channels.analysis.sums if not kept(one.ids).all()}
    found = affected(original, pruned, cut, stand_ins)
    return [replace(one, kept=_kept_along(one, channels, kept)) for one in found]


def _kept_along(one: Step, channels: Channels, kept: Kept) -> Array | None:
    """Which of the target's channels are left; None where they have no ids."""
    axes = channels.analysis.axes_of(one.target)
    ids = None if axes is None else axes[1 if one.layer.patches else -1]
    return kept(ids) if isinstance(ids, np.ndarray) else None
