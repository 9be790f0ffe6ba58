"""Torch: executes a graph with gradients, so that a pass may ask what a loss thinks of a channel, or train what is left.

operators    what each operator is in torch: a table, made of those of the modules that it names
network      a graph that is executed
runtime      the runtime: sessions like any other's, and networks
"""

from .runtime import TorchRuntime

__all__ = ["TorchRuntime"]
