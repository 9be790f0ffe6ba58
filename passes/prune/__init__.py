"""Pruning: parts of a network are really removed, and what is left is fitted to data; no labels, no training.

prune.channels    channels, neurons, heads and whole blocks: whatever saves most for what it does to the outputs
prune.heads       heads of attention alone
prune.layers      whole residual blocks alone
prune.sparsity    single weights become zero, anywhere or in a pattern; shapes stay
"""

from .channels import PruneChannels, PruneHeads, PruneLayers
from .sparsity import PruneSparsity

__all__ = ["PruneChannels", "PruneHeads", "PruneLayers", "PruneSparsity"]
