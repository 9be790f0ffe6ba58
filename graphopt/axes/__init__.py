"""Channels: which indices of which axes are the same channel, what goes together, and its removal.

Every axis of every value is an array of channel ids, int64, one per index. Each operator's rule (``rules``) says which ids are
the same, a union-find (``ids``) joins them, and what is joined is removed together (``groups``):

    prepare(model)                                     # weights that look tied but are not
    channels = analyse(model)
    for group in channels.groups():
        print(group)                                   # what goes together, or why nothing may
    worst = group.choose(order_of_units, count)        # never all of what lies alone on an axis
    remove(model, channels, {group: worst})

Removing a unit means that its contribution to everything that sums over it becomes zero; ``masked`` is the same network with
just that, all sizes as they were, and both give the same outputs. So a channel whose absence changes more than a sum (the mean
of a LayerNorm, a Softmax, a maximum over channels) is forbidden, and so is what an operator without a rule reads.
"""

from __future__ import annotations

from .channels import Channels, analyse
from .groups import Group, Member, Use
from .ids import Ids
from .masked import masked
from .prepare import prepare
from .remove import Removal, remove

__all__ = ["Channels", "Group", "Ids", "Member", "Removal", "Use", "analyse", "masked", "prepare", "remove"]
