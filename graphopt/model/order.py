"""The order of a graph's nodes in which each comes after those that it reads from, or the cycle that forbids one.

Kahn's algorithm with the first ready node taken first, so an order that is right already stays as it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence


class CycleError(ValueError):
    """No order exists; ``nodes`` are the indices of a cycle, each read by the next and the last by the first."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__(f"cycle of {len(nodes)} nodes")
        self.nodes = nodes


def stable_order(needs: Sequence[Collection[int]]) -> list[int]:
    """Sort the nodes ``0 .. n-1``; ``needs[i]`` are those that must come before node ``i``.

    Raises:
        CycleError: A node needs itself, directly or through others.
    """
    needed_by: list[list[int]] = [[] for _ in needs]
    for index, needed in enumerate(needs):
        for before in needed:
            needed_by[before].append(index)
    missing = [len(needed) for needed in needs]
    ready = [index for index, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        node = heapq.heappop(ready)
        order.append(node)
        for after in needed_by[node]:
            missing[after] -= 1
            if missing[after] == 0:
                heapq.heappush(ready, after)
    if len(order) < len(needs):
        raise CycleError(_cycle(needs, set(range(len(needs))) - set(order)))
    return order


def _cycle(needs: Sequence[Collection[int]], left: set[int]) -> list[int]:
    """A cycle among the nodes that could not be sorted: each of them needs another of them."""
    node = min(left)
    seen: dict[int, int] = {}
    path: list[int] = []
    while node not in seen:
        seen[node] = len(path)
        path.append(node)
        node = min(left.intersection(needs[node]))
    return path[seen[node] :][::-1]
