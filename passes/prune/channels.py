"""The passes: which parts of a network each one removes; the rest is theirs in common (``structured``)."""

from __future__ import annotations

from pydantic import Field

from graphopt.axes import Group
from graphopt.contracts import Context

from .structured import Goals, Structured, UnitOptions

_ATTENTION = frozenset({"MatMul", "Gemm", "Attention", "MultiHeadAttention", "GroupQueryAttention"})


class ChannelOptions(UnitOptions):
    """Of channels, neurons, heads, and blocks where these are taken as well."""

    multiple: int | None = Field(
        None, ge=1, description="numbers of units are rounded up to a multiple of it, if there are more"
    )
    min_channels: int = Field(1, ge=1, description="so many units of each group stay at least")
    heads: bool = Field(True, description="whether heads of attention may go as well")
    blocks: bool = Field(True, description="whether whole residual blocks may go as well, unless a ratio is given")


class PruneChannels(Structured):
    """Channels, neurons, heads and whole blocks, each where it saves most for what it does to the outputs."""

    name = "prune.channels"
    summary = "remove channels, neurons, heads and whole blocks, and fit what is left to data; no labels, no training"
    Options = ChannelOptions
    options: ChannelOptions

    def takes(self, group: Group) -> bool:
        """All, or all but heads."""
        return self.options.heads or not is_heads(group)

    def takes_blocks(self) -> bool:
        """Unless the same part of each group is to go."""
        return self.options.blocks and self.options.ratio is None

    def multiple(self, context: Context) -> int:
        """As the options say, or as the target likes it."""
        return super().multiple(context) if self.options.multiple is None else self.options.multiple

    def least(self) -> int:
        """As the options say."""
        return self.options.min_channels


class HeadOptions(UnitOptions):
    """Of heads."""

    min_heads: int = Field(1, ge=1, description="so many heads of each attention stay at least")


class PruneHeads(Structured):
    """Heads of attention, each with all its channels; of grouped queries, a key with the queries that share it."""

    name = "prune.heads"
    summary = "remove heads of attention, and fit what is left to data; no labels, no training"
    Options = HeadOptions
    options: HeadOptions

    def takes(self, group: Group) -> bool:
        """Heads."""
        return is_heads(group)

    def takes_blocks(self) -> bool:
        """None."""
        return False

    def multiple(self, context: Context) -> int:
        """Any number: a head has channels enough."""
        del context
        return 1

    def least(self) -> int:
        """As the options say."""
        return self.options.min_heads


class PruneLayers(Structured):
    """Whole blocks: what is added to a value of the same shape is left out, and what follows is fitted."""

    name = "prune.layers"
    summary = "leave out whole residual blocks, and fit what is left to data; no labels, no training"
    Options = Goals

    def takes(self, group: Group) -> bool:
        """None."""
        del group
        return False


def is_heads(group: Group) -> bool:
    """Whether the units are heads: each is several channels of matrix products."""
    return all(use.node.op_type in _ATTENTION and len(use.index(0)) > 1 for use in group.producers if _is_matrix(use.node))


def _is_matrix(node: object) -> bool:
    return getattr(node, "op_type", "") != "Add"
