"""Pruning: parts of a network are really removed, and what is left is fitted to data; no labels, no training.

prune.channels    channels, neurons and heads that are tied by nothing but themselves
"""

from .channels import PruneChannels

__all__ = ["PruneChannels"]
