"""What a model can lose, by the names of its sites: groups of units, and whole blocks; and how it loses them.

    remove   what goes is removed in place, and what became of the first model by then is told on (``refit``)
    told     what goes, in words, with what that saves

What is known of a model is found out when it is asked for first: to remove one block, no group has to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from graphopt import axes, cost
from graphopt import model as models
from graphopt.axes import Channels, Group
from graphopt.axes.remove import keeping
from graphopt.contracts import Array, Change
from graphopt.dataset import Dataset
from graphopt.reconstruct import Step

from . import shares
from .blocks import Block, blocks, leave_out
from .refit import Past


@dataclass
class Parts:
    """Of one model, as ``axes.prepare`` left it; of no use after ``remove``."""

    model: ir.Model
    data: Dataset | None
    takes: Callable[[Group], bool]
    """Whether units of a group are offered."""
    takes_blocks: bool

    @cached_property
    def channels(self) -> Channels:
        """Which channels go together."""
        return axes.analyse(self.model)

    @cached_property
    def groups(self) -> Mapping[str, Group]:
        """The groups that are offered."""
        return {name: group for name, group in _by_name(self.channels).items() if self.takes(group)}

    @cached_property
    def blocks(self) -> Mapping[str, Block]:
        """The blocks that are offered."""
        return {block.name: block for block in blocks(self.model, self.macs)} if self.takes_blocks else {}

    @cached_property
    def macs(self) -> Mapping[ir.Node, int]:
        """Multiply-accumulates of each node; 0 where they are not known."""
        dims = cost.dims_as_fed(self.model, self.data) if self.data is not None else {}
        return {node: count or 0 for node, count in cost.node_macs(self.model, dims).items()}

    def removal(self, gone: Mapping[str, Array], left_out: Collection[str]) -> tuple[Mapping[Group, Array], list[Block]]:
        """What goes: groups with their units, without those that are in blocks that go, and these blocks.

        Args:
            gone: Units, by site; those that the model does not have are passed over.
            left_out: Sites of blocks; those as well.
        """
        chosen = [self.blocks[name] for name in left_out if name in self.blocks]
        going = {node for block in chosen for node in block.nodes}
        groups = [(self.groups[name], units) for name, units in gone.items() if name in self.groups]
        return {group: units for group, units in groups if not going.issuperset(use.node for use in group.producers)}, chosen

    def remove(self, gone: Mapping[str, Array], left_out: Collection[str], past: Past) -> tuple[Past, list[Step]]:
        """Remove units and blocks, as for ``removal``, in place.

        Returns:
            What became of the first model by then, and the layers to be fitted.
        """
        removal, chosen = self.removal(gone, left_out)
        kept = keeping(self.channels, removal)
        axes.remove(self.model, self.channels, removal)
        order = {node: place for place, node in enumerate(self.model.graph)}
        stand_ins = leave_out(self.model, sorted(chosen, key=lambda block: order[block.join]))
        past = past.without(self.channels, kept, stand_ins)
        return past, past.steps(self.model, self.channels, kept, stand_ins)

    def told(self, gone: Mapping[str, Array], left_out: Collection[str]) -> list[Change]:
        """What ``remove`` would remove, group by group and block by block, and what that saves."""
        whole = max(sum(self.macs.values()), 1)

        def saving(saved: shares.Saved) -> str:
            return f"alone it saves {saved.macs / whole:.1%} of the MACs and {saved.bytes / 1e3:.1f} kB"

        names = {group: name for name, group in self.groups.items()}
        removal, chosen = self.removal(gone, left_out)
        changes = []
        for group, units in removal.items():
            what = f"{group.size - len(units)} of {group.size} channels are left"
            tied = len({use.node for use in group.producers}) - 1
            also = f"; tied to those of {tied} more" if tied else ""
            why = f"the layers that read it lose least without these: {saving(shares.saved(group, units, self.macs, {}))}{also}"
            changes.append(Change(names[group], what, why))
        for block in chosen:
            what = f"a block of {len(block.nodes) + 1} nodes is left out"
            changes.append(Change(block.name, what, saving(shares.left_out(block, self.macs, {}))))
        return changes


def prepared(model: ir.Model) -> ir.Model:
    """A clone, as ``axes.prepare`` makes it."""
    clone = models.clone(model)
    axes.prepare(clone)
    return clone


def _by_name(channels: Channels) -> dict[str, Group]:
    """Groups by the names of their sites, each its own."""
    found: dict[str, Group] = {}
    for group in channels.groups():
        name, number = group.name, 1
        while name in found:
            number += 1
            name = f"{group.name} ({number})"
        found[name] = group
    return found
