"""Random valid models for property tests: what exporters write, mixed without sense but within the rules.

Inputs: x float[N, 4, 4, 4], y float[N, 6], flag bool[], w float[] (an initializer that a caller may override) and u, which
nobody uses. Everything that is drawn is valid ONNX and runs on onnxruntime at every batch size N.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Dims = tuple[int | str, ...]
BATCH = "N"
UNARY = ("Relu", "Neg", "Abs", "Tanh", "Identity", "Dropout", "Sigmoid", "Cast", "Floor", "Transpose", "Pad")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")
INPUTS = {"x": (BATCH, 4, 4, 4), "y": (BATCH, 6), "u": (BATCH, 2)}


@dataclass(frozen=True)
class Value:
    name: str
    dims: Dims


@dataclass
class Graph:
    """One graph under construction; ``outer`` are the float tensors of the graphs around it, which it may capture."""

    draw: st.DrawFn
    names: itertools.count
    depth: int = 0
    outer: list[Value] = field(default_factory=list)
    own: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def pick(self, rank: int | None = None) -> Value:
        """A float tensor, often one of the latest, so that chains grow."""
        values = [v for v in self.outer + self.own if rank is None or len(v.dims) == rank]
        return self.draw(st.sampled_from(values[-3:] if self.draw(st.booleans()) else values))

    def new(self, hint: str = "v") -> str:
        # Inside branches names repeat: siblings may use the same ones.
        return f"{hint}_{self.depth}_{len(self.nodes)}_{len(self.initializers)}" if self.depth else f"{hint}{next(self.names)}"

    def node(self, op_type: str, inputs: list[str], hint: str = "v", outputs: int = 1, **attributes: object) -> list[str]:
        names = [f"{self.new(hint)}{'' if i == 0 else f'_{i}'}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, self.new("n"), **attributes))
        return names

    def add(self, op_type: str, inputs: list[str], dims: Dims, **attributes: object) -> Value:
        value = Value(self.node(op_type, inputs, **attributes)[0], dims)
        self.own.append(value)
        return value

    def constant(self, array: np.ndarray) -> str:
        name = self.new("c")
        tensor = numpy_helper.from_array(array, name)
        if self.draw(st.booleans()):
            self.initializers.append(tensor)
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def floats(self, *dims: int) -> str:
        seed = self.draw(st.integers(0, 2))  # few seeds: equal constants are likely
        return self.constant((np.random.default_rng(seed).standard_normal(dims) * 0.5).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    # ------------------------------------------------------------------------------------------------------- operators

    def unary(self) -> None:
        source, op_type = self.pick(), self.draw(st.sampled_from(UNARY))
        inputs, attributes = [source.name], {}
        if op_type == "Cast":
            attributes["to"] = TensorProto.FLOAT
        if op_type == "Transpose":
            attributes["perm"] = [*range(len(source.dims))]
        if op_type == "Pad":
            inputs.append(self.ints(*[0] * (2 * len(source.dims))))
        self.add(op_type, inputs, source.dims, **attributes)

    def binary(self) -> None:
        source, op_type = self.pick(), self.draw(st.sampled_from(BINARY))
        same = [v.name for v in self.outer + self.own if v.dims == source.dims]
        last = source.dims[-1] if source.dims and isinstance(source.dims[-1], int) else 1
        kind = self.draw(st.sampled_from(("same", "scalar", "vector")))
        other = self.draw(st.sampled_from(same)) if kind == "same" else self.floats(*(() if kind == "scalar" else (last,)))
        self.add(op_type, [source.name, other], source.dims)

    def matmul(self) -> None:
        source = self.pick()
        if len(source.dims) >= 2 and isinstance(source.dims[-1], int):
            width = self.draw(st.sampled_from((2, 6)))
            weight = self.floats(source.dims[-1], width)
            if self.draw(st.booleans()):
                weight = self.node("Transpose", [self.floats(width, source.dims[-1])], perm=[1, 0])[0]
            self.add("MatMul", [source.name, weight], (*source.dims[:-1], width))

    def conv(self) -> None:
        source = self.pick(4)
        weight = self.floats(4, int(source.dims[1]), 1, 1)
        # The bias as torch's exporter writes it where there is none.
        zero = self.node("CastLike", [self.constant(np.array(0.0, np.float32)), source.name])[0]
        count = self.node("Slice", [self.node("Shape", [weight])[0], self.ints(0), self.ints(1)])[0]
        bias = self.node("Expand", [zero, count])[0]
        self.add("Conv", [source.name, weight, bias], (source.dims[0], 4, *source.dims[2:]))

    def flatten(self) -> None:
        """Reshape to [N, -1] by a shape that the graph computes, or by a constant."""
        source = self.pick()
        if source.dims[:1] != (BATCH,) or not all(isinstance(dim, int) for dim in source.dims[1:]):
            return
        rest = int(np.prod([int(dim) for dim in source.dims[1:]]))
        if self.draw(st.booleans()):
            target = self.ints(0, -1)
        else:
            batch = self.node("Gather", [self.node("Shape", [source.name])[0], self.constant(np.array(0))])[0]
            target = self.node("Concat", [self.node("Unsqueeze", [batch, self.ints(0)])[0], self.ints(-1)], axis=0)[0]
        self.add("Reshape", [source.name, target], (BATCH, rest))

    def concat(self) -> None:
        source = self.pick()
        if len(source.dims) >= 2 and isinstance(source.dims[1], int) and source.dims[1] <= 16:
            same = [v for v in self.outer + self.own if v.dims == source.dims]
            parts = self.draw(st.lists(st.sampled_from(same), min_size=1, max_size=2))
            dims = (source.dims[0], source.dims[1] * len(parts), *source.dims[2:])
            self.add("Concat", [part.name for part in parts], dims, axis=1)

    def split(self) -> None:
        source = self.pick()
        if len(source.dims) >= 2 and isinstance(source.dims[1], int) and source.dims[1] % 2 == 0:
            dims = (source.dims[0], source.dims[1] // 2, *source.dims[2:])
            first, second = self.node("Split", [source.name], outputs=2, axis=1, num_outputs=2)
            self.own += [Value(first, dims), Value(second, dims)]

    def computed(self) -> None:
        """A Reshape, Expand or Slice by what the graph computes from a shape; whether it changes anything is left to chance."""
        source, other = self.pick(), self.pick()
        if source.dims[:1] != (BATCH,) or other.dims[:1] != (BATCH,) or len(source.dims) < 2:
            return
        shape = self.node("Shape", [other.name])[0]
        batch = self.node("Slice", [shape, self.ints(0), self.ints(1)])[0]
        kind, rest = self.draw(st.sampled_from(("reshape", "rows", "expand", "slice"))), [*map(int, source.dims[1:])]
        if kind == "reshape":
            wanted = self.draw(st.sampled_from((rest, [int(np.prod(rest))], [1, *rest], [-1])))
            target = self.node("Concat", [batch, self.ints(*wanted)], axis=0)[0]
            self.add("Reshape", [source.name, target], (BATCH, *(wanted if wanted != [-1] else [int(np.prod(rest))])))
        elif kind == "rows":  # the batch merged with another axis, and taken apart again
            rows = self.node("Mul", [batch, self.ints(rest[0])])[0]
            flat = self.node("Reshape", [source.name, self.node("Concat", [rows, self.ints(-1)], axis=0)[0]])[0]
            back = self.node("Concat", [self.node("Div", [rows, self.ints(rest[0])])[0], self.ints(*rest)], axis=0)[0]
            self.add("Reshape", [self.node("Neg", [flat])[0], back], source.dims)
        elif kind == "expand":
            target = self.node("Concat", [batch, self.ints(*rest)], axis=0)[0]
            self.add("Expand", [source.name, target], source.dims)
        else:
            self.add("Slice", [source.name, self.ints(0), batch, self.ints(0)], source.dims)

    def round_trip(self) -> None:
        """Operators that undo each other, or only look so."""
        source, swap = self.pick(), self.draw(st.booleans())
        if len(source.dims) < 2 or not isinstance(source.dims[1], int) or source.dims[1] % 2:
            return
        rank, half = len(source.dims), source.dims[1] // 2
        kind = self.draw(st.sampled_from(("transpose", "split", "slice", "heads", "cast")))
        if kind == "transpose":
            perm = [1, 0, *range(2, rank)]
            first = self.node("Transpose", [source.name], perm=perm)[0]
            self.add("Transpose", [self.node("Tanh", [first])[0] if swap else first], source.dims, perm=perm)
        elif kind == "split":
            parts = self.node("Split", [source.name], outputs=2, axis=1, num_outputs=2)
            self.add("Concat", parts[::-1] if swap else parts, source.dims, axis=1)
        elif kind == "slice":
            joined = self.node("Concat", [source.name, self.node("Neg", [source.name])[0]], axis=1)[0]
            begin = half if swap else source.dims[1]
            self.add("Slice", [joined, self.ints(begin), self.ints(begin + source.dims[1]), self.ints(1)], source.dims)
        elif kind == "heads" and rank == 2:
            split = self.node("Reshape", [source.name, self.ints(0, 2, half)])[0]
            turned = self.node("Transpose", [split], perm=[0, 2, 1] if swap else [0, 1, 2])[0]
            self.add("Reshape", [turned, self.ints(-1, source.dims[1])], source.dims)
        else:
            other = self.node("Cast", [source.name], to=TensorProto.INT32 if swap else TensorProto.DOUBLE)[0]
            back = self.node("Cast", [other], to=TensorProto.FLOAT)[0]
            self.add("Abs", [back], source.dims)  # what comes from two Casts, onnxruntime cannot capture in a branch

    def moved(self) -> None:
        """Operators between others that only reshape or transpose."""
        source, at = self.pick(), self.draw(st.integers(1, 2))
        if len(source.dims) < 2 or source.dims[0] != BATCH:
            return
        rank, rest = len(source.dims), [*map(int, source.dims[1:])]
        kind = self.draw(st.sampled_from(("reshape", "stack", "shuffle", "gather", "softmax", "both", "transpose")))
        axis = self.ints(at)
        wide = (*source.dims[:at], 1, *source.dims[at:])
        if kind == "reshape":
            other = self.floats(*self.draw(st.sampled_from(((), (1,), (1, 1, 1), (int(wide[-1]),)))))
            middle = self.node("Mul", [self.node("Tanh", self.node("Unsqueeze", [source.name, axis]))[0], other])[0]
            self.add("Squeeze", [middle, axis], source.dims)
        elif kind == "stack":
            parts = [self.node("Unsqueeze", [name, axis])[0] for name in self._alike(source)]
            whole = Value(self.node("Concat", parts, axis=at)[0], (*wide[:at], len(parts), *wide[at + 1 :]))
            self._turned(whole, self.draw(st.permutations(range(1, rank + 1))))
        elif kind == "shuffle":
            names = self._alike(source)
            joined = self.node("Concat", names, axis=1)[0]
            dims = (BATCH, *self.draw(st.sampled_from(((len(names), rest[0]), (rest[0], len(names))))), *rest[1:])
            cut = Value(self.node("Reshape", [joined, self.ints(0, *map(int, dims[1:]))])[0], dims)
            self._turned(cut, [2, 1, *range(3, rank + 1)])
        elif kind == "gather":
            taken = [0, -1] if self.draw(st.booleans()) else [*range(int(wide[-1]))]
            parts = self.node("Gather", [self.node("Unsqueeze", [source.name, axis])[0], self.ints(*taken)], axis=rank)
            self.add("Flatten", parts, (BATCH, int(np.prod([int(dim) for dim in wide[1:-1]])) * len(taken)))
        elif kind == "softmax":
            cut = self.draw(st.sampled_from(([1, *rest], [*rest, 1])))
            whole = self.node("Reshape", [source.name, self.ints(0, *cut)])
            part = self.node("Softmax", whole, axis=self.draw(st.integers(1, 2)))[0]
            self.add("Reshape", [part, self.ints(0, *rest)], source.dims)
        elif kind == "both":
            pair = [self.node("Unsqueeze", [name, axis])[0] for name in self._alike(source)[:2]]
            self.add(self.draw(st.sampled_from(BINARY)), pair, wide)
        else:
            perm = [0, *self.draw(st.permutations(range(1, rank)))]
            pair = [self.node("Transpose", [name], perm=perm)[0] for name in self._alike(source)]
            joined = self.node("Concat", pair, axis=1)[0]
            dims = [source.dims[axis] for axis in perm]
            self.add("Neg", [joined], (BATCH, int(dims[1]) * len(pair), *dims[2:]))

    def _alike(self, source: Value) -> list[str]:
        """Two or three tensors of the dimensions of one."""
        same = [v.name for v in self.outer + self.own if v.dims == source.dims]
        return self.draw(st.lists(st.sampled_from(same), min_size=2, max_size=3))

    def _turned(self, source: Value, order: list[int]) -> None:
        """Transpose all axes but the first, and merge them in part."""
        dims = (BATCH, *(int(source.dims[axis]) for axis in order))
        turned = self.node("Transpose", [source.name], perm=[0, *order])[0]
        if self.draw(st.booleans()):
            flat = (BATCH, int(dims[1]) * int(dims[2]), *dims[3:])
            self.add("Reshape", [turned, self.ints(0, -1, *map(int, flat[2:]))], flat)
        else:
            self.add("Relu", [turned], dims)

    def parts(self) -> None:
        """Slices that take an axis apart; or not quite."""
        source = self.pick()
        if len(source.dims) < 2 or not isinstance(source.dims[1], int) or source.dims[1] < 2:
            return
        length = source.dims[1]
        middle = self.draw(st.integers(1, length - 1))
        for begin, end in ((0, middle), (middle, self.draw(st.sampled_from((length, 1 << 40, length - 1))))):
            size = len(range(length)[begin:end])
            if size:
                value = self.node("Slice", [source.name, self.ints(begin), self.ints(end), self.ints(1)])[0]
                self.add("Abs", [value], (source.dims[0], size, *source.dims[2:]))

    def filled(self) -> None:
        """A tensor of the same shape, made from the shape: x * 0 + 1."""
        source = self.pick()
        shape = self.node("Shape", [source.name])[0]
        fill = numpy_helper.from_array(np.array([1.5], np.float32))
        self.add("ConstantOfShape", [shape], source.dims, value=fill)

    def dimension(self) -> None:
        """A number that the graph computes from shapes, added to a tensor."""
        source, axis = self.pick(), self.draw(st.integers(0, 1))
        if axis >= len(source.dims):
            return
        dim = self.node("Gather", [self.node("Shape", [source.name])[0], self.constant(np.array(axis))])[0]
        half = self.node("Div", [dim, self.constant(np.array(2))])[0]
        number = self.node("Cast", [half], to=TensorProto.FLOAT)[0]
        self.add("Add", [source.name, number], source.dims)

    def random(self) -> None:
        """Noise, times nothing: no two are the same, and none is a constant."""
        source = self.pick()
        noise = self.node("RandomUniformLike", [source.name])[0]
        zero = self.constant(np.array(0.0, np.float32))
        self.add("Add", [source.name, self.node("Mul", [noise, zero])[0]], source.dims)

    def constants(self) -> None:
        """A small computation on constants only."""
        a, b = self.floats(2, 3), self.floats(2, 3)
        total = self.node(self.draw(st.sampled_from(BINARY)), [a, b])[0]
        self.add(self.draw(st.sampled_from(("Identity", "Exp", "Relu"))), [total], (2, 3))

    def branches(self) -> None:
        """If on an input, a constant, or a dimension; the branches capture what they like."""
        if self.depth >= 2:
            return
        kind = self.draw(st.sampled_from(("flag", "constant")))
        condition = "flag" if kind == "flag" else self.constant(np.array(self.draw(st.booleans())))
        source = self.pick()
        graphs = [self._branch(source) for _ in range(2)]
        self.add("If", [condition], source.dims, then_branch=graphs[0], else_branch=graphs[1])

    def _branch(self, source: Value) -> onnx.GraphProto:
        inner = Graph(self.draw, self.names, self.depth + 1, [*self.outer, *self.own])
        inner.grow(self.draw(st.integers(0, 3)))
        same = [v for v in inner.own if v.dims == source.dims] or [source]
        result = self.draw(st.sampled_from(same))
        name = inner.node(self.draw(st.sampled_from(("Identity", "Neg"))), [result.name])[0]
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph(inner.nodes, f"branch{self.depth}", [], [output], inner.initializers)

    def loop(self) -> None:
        """Add something of the outer graph to the carried value, up to twice."""
        source, captured = self.pick(), self.pick()
        addend = captured if captured.dims == source.dims else source
        scale = self.floats()
        info, depth = helper.make_tensor_value_info, self.depth
        body = helper.make_graph(
            [
                helper.make_node("Identity", [f"go{depth}"], [f"on{depth}"]),
                helper.make_node("Mul", [addend.name, scale], [f"scaled{depth}"]),
                helper.make_node("Add", [f"state{depth}", f"scaled{depth}"], [f"next{depth}"]),
            ],
            "body",
            [
                info(f"i{depth}", TensorProto.INT64, []),
                info(f"go{depth}", TensorProto.BOOL, []),
                info(f"state{depth}", TensorProto.FLOAT, None),
            ],
            [info(f"on{depth}", TensorProto.BOOL, []), info(f"next{depth}", TensorProto.FLOAT, None)],
        )
        trips = self.constant(np.array(self.draw(st.integers(0, 2))))
        self.add("Loop", [trips, "", source.name], source.dims, body=body)

    def call(self) -> None:
        source = self.pick()
        self.add("twice", [source.name], source.dims, domain="local")

    def overridable(self) -> None:
        source = self.pick()
        self.add("Mul", [source.name, "w"], source.dims)

    def grow(self, steps: int) -> None:
        for _ in range(steps):
            getattr(self, self.draw(st.sampled_from(STEPS)))()


_STEPS = (
    "unary unary unary binary binary matmul conv flatten concat split filled dimension random constants branches branches loop"
    " call overridable computed computed round_trip round_trip moved moved moved parts"
)
STEPS = _STEPS.split()


@st.composite
def models(draw: st.DrawFn, steps: int = 12) -> onnx.ModelProto:
    """A model of some 5 to 60 nodes."""
    graph = Graph(draw, itertools.count())
    graph.own += [Value(name, dims) for name, dims in INPUTS.items() if name != "u"]
    graph.grow(draw(st.integers(1, steps)))
    made = graph.own[2:] or graph.own[:1]
    used = {name for node in graph.nodes for name in node.input}
    sinks = [value for value in made if value.name not in used]  # so that little is dead
    results = [*sinks[-6:], *draw(st.lists(st.sampled_from(made), max_size=2, unique=True))] or made[-1:]
    results = [*dict.fromkeys(results)]
    if results[0].name in INPUTS:
        results = [graph.add("Identity", [results[0].name], results[0].dims)]
    info = helper.make_tensor_value_info
    inputs = [info(name, TensorProto.FLOAT, dims) for name, dims in INPUTS.items()]
    inputs += [info("flag", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, [])]
    outputs = [info(value.name, TensorProto.FLOAT, value.dims) for value in results]
    override = numpy_helper.from_array(np.array(2.0, np.float32), "w")
    proto = helper.make_graph(graph.nodes, "random", inputs, outputs, [*graph.initializers, override])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    body = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Add", ["b", "a"], ["c"])]
    function = helper.make_function("local", "twice", ["a"], ["c"], body, opsets[:1])
    return helper.make_model(proto, opset_imports=opsets, ir_version=10, functions=[function])


def feed(batch: int, *, flag: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs for a model of ``models``."""
    rng = np.random.default_rng(seed)
    arrays = {n: rng.standard_normal((batch, *map(int, dims[1:]))).astype(np.float32) for n, dims in INPUTS.items()}
    return {**arrays, "flag": np.array(flag)}
