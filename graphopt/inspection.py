"""What a model is: the facts that the report and ``graphopt inspect`` tell, and which of its nodes weigh most."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

from . import model, partitions, targets
from .contracts import Progress, TensorSpec
from .cost import node_macs, total_macs
from .errors import GraphoptError
from .graphs import operator, site
from .model.weights import places, tensor_bytes
from .partitions import Cut
from .report.schema import ModelFacts
from .targets import Target


@dataclass(frozen=True)
class NodeFacts:
    """One node: its multiply-accumulates for one sample (None: shapes unknown) and the weights that it reads."""

    name: str
    op_type: str
    macs: int | None
    parameters: int
    weight_bytes: int


@dataclass(frozen=True)
class Support:
    """Whether a target runs a model here, and how its provider cuts the model (``partitions``).

    Where the target does not run here, ``cut`` is an estimate from a table; None: there is none either.
    """

    target: str
    available: bool
    why: str
    nodes: Mapping[str, int]
    """Nodes by the provider that takes them."""
    cut: Cut | None

    def row(self) -> dict[str, object]:
        """What JSON holds of it."""
        cut = self.cut
        return {
            "target": self.target,
            "available": self.available,
            "why": self.why,
            "judged_by": cut and cut.judged_by,
            "source": cut and cut.source,
            "partitions": cut and cut.partitions,
            "nodes": dict(self.nodes),
            "taken": cut and cut.taken,
            "of": cut and cut.nodes,
            "left_behind": [asdict(left) for left in cut.sites] if cut else [],
            "notes": [*cut.notes] if cut else [],
        }


def support(
    loaded: ir.Model, path: Path, wanted: Sequence[Target], progress: Progress, dims: Mapping[str, int] | None = None
) -> list[Support]:
    """Ask targets how they would cut a model: by loading the file where the target runs here, else by a table.

    Args:
        loaded: The model.
        path: Its file.
        wanted: The targets.
        progress: Told what is done.
        dims: Sizes of symbolic dimensions, for targets that ask for fixed ones.

    Raises:
        UsageError: A target names a table that there is not.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        fixed, fixed_path = _with_sizes(loaded, path, dims or {}, Path(folder))
        for target in wanted:
            with progress.stage(f"asking {target.name}"):
                asked, file = (fixed, fixed_path) if target.fixed_shapes else (loaded, path)
                found.append(_support(asked, file, target, dims))
    return found


def _support(loaded: ir.Model, path: Path, target: Target, dims: Mapping[str, int] | None) -> Support:
    here = targets.availability(target)
    try:
        assigned = targets.runtime(target).partition(path, target)
    except GraphoptError as error:
        cut = partitions.estimate(loaded, target, dims)
        counted = {target.provider: cut.taken} if cut else {}
        why = f"it does not run this model: {error.what}" if here.ok else f"it does not run here: {here.why}"
        return Support(target.name, False, why, counted, cut)
    return Support(target.name, True, "", dict(assigned.nodes), partitions.from_provider(loaded, target, assigned))


def _with_sizes(loaded: ir.Model, path: Path, dims: Mapping[str, int], folder: Path) -> tuple[ir.Model, Path]:
    """The model and its file; where ``dims`` gives dynamic dimensions of inputs a size, those of a copy that has it."""

    def sized(value: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        return dim if isinstance(dim, int) else dims.get(str(dim.value), dims.get(f"{value.name}:{axis}", dim))

    shapes = {
        value.name: ir.Shape([sized(value, axis, dim) for axis, dim in enumerate(value.shape)])
        for value in loaded.graph.inputs
        if value.shape is not None
    }
    if all(shapes[value.name] == value.shape for value in loaded.graph.inputs if value.name in shapes):
        return loaded, path
    copy = model.clone(loaded)
    for value in copy.graph.inputs:
        value.shape = shapes.get(value.name)
    return copy, model.save(copy, folder / path.name, durable=False).path


def facts(loaded: ir.Model, path: Path, name: Path | None = None, dims: Mapping[str, int] | None = None) -> ModelFacts:
    """Facts of a model and the file that it is in.

    Args:
        loaded: The model.
        path: Its file.
        name: The path to show when it is not the file's own.
        dims: Sizes of symbolic dimensions, for the multiply-accumulates.
    """
    operators = Counter(operator(node) for node in model.nodes(loaded) if node.op_type != "Constant")
    return ModelFacts(
        path=str(name or path),
        sha256=model.file_sha256(path),
        bytes=model.file_bytes(path),
        nodes=model.count_nodes(loaded),
        parameters=model.parameters(loaded),
        macs=total_macs(loaded, dims),
        opset=model.opset(loaded),
        inputs=[describe(spec) for spec in model.input_specs(loaded)],
        outputs=[describe(spec) for spec in model.output_specs(loaded)],
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
    )


def heaviest(loaded: ir.Model, count: int = 10, dims: Mapping[str, int] | None = None) -> list[NodeFacts]:
    """The nodes with the most multiply-accumulates, then the most weight bytes; at most ``count`` of them."""
    macs = node_macs(loaded, dims)
    constants = {place.owner: place.tensor for place in places(loaded)}
    rows = []
    for node in model.nodes(loaded):
        tensors = [tensor for value in node.inputs if (tensor := _weight(value, constants)) is not None]
        rows.append(
            NodeFacts(
                name=site(node),
                op_type=operator(node),
                macs=macs.get(node, 0),
                parameters=sum(tensor.size for tensor in tensors),
                weight_bytes=sum(map(tensor_bytes, tensors)),
            )
        )
    rows = [row for row in rows if row.macs or row.weight_bytes]
    return sorted(rows, key=lambda row: (-(row.macs or 0), -row.weight_bytes))[:count]


def _weight(value: ir.Value | None, constants: Mapping[ir.Value | ir.Node, ir.TensorProtocol]) -> ir.TensorProtocol | None:
    """The tensor behind a value; of a DequantizeLinear's output, the integers that it reads."""
    if value is None or value in constants:
        return None if value is None else constants[value]
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return _weight(producer.inputs[0], constants)
    return None if producer is None else constants.get(producer)


def describe(spec: TensorSpec) -> str:
    """An input or output in one line: ``input float32 [N, 3, 224, 224]``."""
    dims = "[?]" if spec.shape is None else "[" + ", ".join("?" if dim is None else str(dim) for dim in spec.shape) + "]"
    return f"{spec.name} {'string' if spec.dtype == object else spec.dtype} {dims}"
