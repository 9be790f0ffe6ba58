"""The cheapest labelling of a graph with two labels: a minimum cut (Greig, Porteous and Seheult 1989).

    minimize  sum_i cost[i][label_i]  +  sum_(i,j) weight[i,j] * (label_i != label_j),      weight >= 0

Node i hangs between the source (label 0) and the sink (label 1): the edge to the sink carries cost[i][0], which is cut
when i stays with the source, and the edge from the source carries cost[i][1]; neighbours are joined by their weight.
The maximum flow is found by Dinic's algorithm (1970), which for the hundreds of operators of a model takes
milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

_ENOUGH = 1e-12  # relative to the largest capacity: what is left of a capacity by rounding


def cheapest_labels(costs: Sequence[tuple[float, float]], weights: Sequence[tuple[int, int, float]]) -> list[bool]:
    """Whether each node has label 1 in a cheapest labelling; of two equally cheap ones, the one with more labels 0.

    Args:
        costs: Per node, what label 0 and label 1 cost; finite, any sign.
        weights: Pairs of nodes, with what it costs when their labels differ; infinite ties them together.
    """
    source, sink = len(costs), len(costs) + 1
    finite = sum(abs(a) + abs(b) for a, b in costs) + sum(w for *_, w in weights if w != float("inf")) + 1.0
    flow = _Flow(len(costs) + 2, finite * _ENOUGH)
    for node, (zero, one) in enumerate(costs):
        least = min(zero, one)
        flow.join(node, sink, zero - least, 0.0)
        flow.join(source, node, one - least, 0.0)
    for a, b, weight in weights:
        capacity = min(weight, finite)
        flow.join(a, b, capacity, capacity)
    flow.run(source, sink)
    ones = flow.reaching(sink)
    return [node in ones for node in range(len(costs))]


class _Flow:
    """A flow network: arcs in pairs, arc ``e`` and its reverse ``e ^ 1``."""

    def __init__(self, nodes: int, nothing: float) -> None:
        self.heads: list[int] = []
        self.left: list[float] = []
        self.arcs: list[list[int]] = [[] for _ in range(nodes)]
        self.nothing = nothing

    def join(self, tail: int, head: int, forward: float, backward: float) -> None:
        for start, end, capacity in ((tail, head, forward), (head, tail, backward)):
            self.arcs[start].append(len(self.heads))
            self.heads.append(end)
            self.left.append(capacity)

    def run(self, source: int, sink: int) -> None:
        """Push a maximum flow through the network."""
        while (levels := self._levels(source))[sink] >= 0:
            following = [0] * len(self.arcs)
            while self._push(source, sink, levels, following):
                pass

    def _levels(self, source: int) -> list[int]:
        """Distance of each node from the source over arcs with capacity left; -1: none."""
        levels = [-1] * len(self.arcs)
        levels[source] = 0
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for arc in self.arcs[node]:
                head = self.heads[arc]
                if levels[head] < 0 and self.left[arc] > self.nothing:
                    levels[head] = levels[node] + 1
                    queue.append(head)
        return levels

    def _push(self, source: int, sink: int, levels: list[int], following: list[int]) -> bool:
        """Push along one shortest path, found depth first; False when there is none. Dead ends are not entered twice."""
        path: list[int] = []
        node = source
        while node != sink:
            arcs = self.arcs[node]
            while following[node] < len(arcs):
                arc = arcs[following[node]]
                head = self.heads[arc]
                if self.left[arc] > self.nothing and levels[head] == levels[node] + 1:
                    path.append(arc)
                    node = head
                    break
                following[node] += 1
            else:
                if not path:
                    return False
                node = self.heads[path.pop() ^ 1]
                following[node] += 1
        amount = min(self.left[arc] for arc in path)
        for arc in path:
            self.left[arc] -= amount
            self.left[arc ^ 1] += amount
        return True

    def reaching(self, sink: int) -> set[int]:
        """The nodes from which the sink can still be reached: its side of the cut that lies nearest to it."""
        found, queue = {sink}, deque([sink])
        while queue:
            node = queue.popleft()
            for arc in self.arcs[node]:
                tail = self.heads[arc]
                if tail not in found and self.left[arc ^ 1] > self.nothing:
                    found.add(tail)
                    queue.append(tail)
        return found
