"""How a node of an operator's old version is written in the new one, where the meaning of the same text changed.

    attribute -> input        axes of Squeeze, Reduce*; pads, min, max, k, ...      Clip<max = 6>(x)  ->  Clip(x, , 6)
    default spelled out       where the default changed                             DFT(x)            ->  DFT(x, , 1)
    renamed                   Scatter, Upsample; modes of GridSample                Scatter           ->  ScatterElements
    several nodes             Softmax over several axes at once                     Flatten, Softmax, Reshape

``RULES`` holds them by operator and new version. A rule changes its node in place and returns whether it did anything; where
the new version has no equal it raises ``Refused`` with the reason. New constants are Constant nodes in front of the node:
these may stand everywhere, functions and subgraphs included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.shapes import Facts


class Refused(Exception):  # noqa: N818 - it says what happened, and is caught by the one who asked
    """The node has no equal in the new version; the text says why."""


@dataclass(frozen=True)
class Site:
    """A node in its graph, and what is known of types and shapes."""

    node: ir.Node
    known: Facts
    names: set[str]
    """The names in the whole model or function: new ones differ from them, so that none hides another."""

    def take(self, name: str) -> ir.Attr | None:
        """Remove an attribute and return it.

        Raises:
            Refused: The attribute is a function's parameter, which an input cannot be.
        """
        attribute = self.node.attributes.get(name)
        if attribute is not None and attribute.is_ref():
            raise Refused(f"its attribute {name!r} is a parameter of the function")
        return self.node.attributes.pop(name, None)

    def put_input(self, index: int, value: ir.Value) -> None:
        """Give the node an input at a place, empty ones before it if need be."""
        if len(self.node.inputs) <= index:
            self.node.resize_inputs(index + 1)
        self.node.replace_input_with(index, value)

    def constant(self, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
        """The output of a new Constant node."""
        tensor = ir.Tensor(array) if dtype is None else ir.Tensor(array.astype(dtype.numpy()), dtype)
        return self.add("Constant", [], value=tensor)

    def add(self, op_type: str, inputs: list[ir.Value | None], *, after: bool = False, **attributes: object) -> ir.Value:
        """The output of a new node right before this one, or right after."""
        new = ir.node(op_type, inputs, attributes)  # type: ignore[arg-type]  # it refuses other values itself
        graph = self.node.graph
        assert graph is not None
        (graph.insert_after if after else graph.insert_before)(self.node, new)
        base = f"{self.node.outputs[0].name or self.node.op_type}_{op_type.lower()}"
        numbered = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(1)))
        name = next(name for name in numbered if name not in self.names)
        self.names.add(name)
        new.outputs[0].name = name
        return new.outputs[0]

    def dtype(self, index: int) -> ir.DataType:
        """The element type of an input.

        Raises:
            Refused: It is not known.
        """
        value = self.node.inputs[index]
        assert value is not None
        known = self.known.get(value)
        dtype = value.dtype if known is None or known.type is None else known.type.dtype
        if dtype is None:
            raise Refused("the type of its input is not known")
        return dtype

    def shape(self, index: int) -> ir.Shape | None:
        """The shape of an input, as far as it is known for certain."""
        value = self.node.inputs[index]
        known = None if value is None else self.known.get(value)
        return None if known is None else known.shape


Rewrite = Callable[[Site], bool]


@dataclass(frozen=True)
class Rule:
    """What to do with a node; ``becomes``: the operator that it is then, if another."""

    rewrite: Rewrite
    becomes: str | None = None


# ---------------------------------------------------------------------------------------------------- attributes to inputs


def _integers(attribute: str, index: int) -> Rewrite:
    """A list of integers becomes an input; absent, both versions mean the same."""

    def rewrite(site: Site) -> bool:
        found = site.take(attribute)
        if found is None:
            return False
        site.put_input(index, site.constant(np.asarray(found.as_ints(), np.int64)))
        return True

    return rewrite


def _clip(site: Site) -> bool:
    """Version 6: attributes min and max, of any float type; version 11: scalars of the type of x."""
    limits = [(index, name) for index, name in ((1, "min"), (2, "max")) if name in site.node.attributes]
    dtype = site.dtype(0) if limits else ir.DataType.FLOAT
    for index, name in limits:
        limit = site.take(name)
        assert limit is not None
        site.put_input(index, site.constant(np.asarray(limit.as_float()), dtype))
    return bool(limits)


def _pad(site: Site) -> bool:
    """Version 2: attributes pads and value; version 11: inputs."""
    value = site.node.attributes.get("value")
    fill = 0.0 if value is None or value.is_ref() else value.as_float()
    dtype = site.dtype(0) if fill else ir.DataType.FLOAT
    site.take("value")
    pads = site.take("pads")
    assert pads is not None
    site.put_input(1, site.constant(np.asarray(pads.as_ints(), np.int64)))
    if fill:
        site.put_input(2, site.constant(np.asarray(fill), dtype))
    return True


def _slice(site: Site) -> bool:
    for index, name in ((1, "starts"), (2, "ends"), (3, "axes")):
        found = site.take(name)
        if found is not None:
            site.put_input(index, site.constant(np.asarray(found.as_ints(), np.int64)))
    return True


def _top_k(site: Site) -> bool:
    k = site.take("k")
    assert k is not None
    site.put_input(1, site.constant(np.asarray([k.as_int()], np.int64)))
    return True


def _dropout(site: Site) -> bool:
    """Version 10 is inference, and so is version 12 without its third input; the ratio is kept for who trains on."""
    ratio = site.take("ratio")
    if ratio is None:
        return False
    site.put_input(1, site.constant(np.asarray(ratio.as_float(), np.float32)))
    return True


def _upsample(site: Site) -> bool:
    scales = site.take("scales")
    assert scales is not None
    site.put_input(1, site.constant(np.asarray(scales.as_floats(), np.float32)))
    return True


def _dft(site: Site) -> bool:
    """Version 17: an attribute with the default 1; version 20: an input with the default -2."""
    axis = site.take("axis")
    site.put_input(2, site.constant(np.asarray(1 if axis is None else axis.as_int(), np.int64)))
    return True


# ------------------------------------------------------------------------------------------------------- other definitions


def _batch_normalization_9(site: Site) -> bool:
    """Version 7 had ``spatial``; 0 kept statistics for each position, which version 9 has not."""
    spatial = site.node.attributes.get("spatial")
    if spatial is not None and (spatial.is_ref() or spatial.as_int() != 1):
        raise Refused("spatial = 0 is gone")
    return site.take("spatial") is not None


def _inference_only(site: Site) -> bool:
    """The first output means the same; the others, which training used, do not."""
    if any(output.uses() or output.is_graph_output() for output in site.node.outputs[1:]):
        raise Refused("its further outputs, which training uses, are used")
    site.node.resize_outputs(1)
    return False


def _dropout_mask(site: Site) -> bool:
    """Version 7 gives its mask as numbers, version 10 as bools."""
    if any(output.uses() or output.is_graph_output() for output in site.node.outputs[1:]):
        raise Refused("its mask is used, and is of another type then")
    site.node.resize_outputs(1)
    return False


def _erf(site: Site) -> bool:
    """Version 13 has floating-point types only."""
    if not site.dtype(0).is_floating_point():
        raise Refused("its input is of an integer type")
    return False


def _softmax(site: Site) -> bool:
    """Version 11 normalizes over all axes from ``axis`` (default 1) on, version 13 over one (default -1).

    The same where the axes after ``axis`` are none, or all of size 1. Otherwise Reshape(Softmax(Flatten(x)), Shape(x)).
    """
    node = site.node
    attribute = node.attributes.get("axis")
    if attribute is not None and attribute.is_ref():
        raise Refused("its attribute 'axis' is a parameter of the function")
    axis = 1 if attribute is None else attribute.as_int()
    shape = site.shape(0)
    after = None if shape is None else shape[axis % len(shape) + 1 :]
    if axis == -1 or (after is not None and all(dim == 1 for dim in after)):
        node.attributes["axis"] = ir.AttrInt64("axis", axis)
        return attribute is None
    x, result = node.inputs[0], node.outputs[0]
    assert x is not None
    size, flat = site.add("Shape", [x]), site.add("Flatten", [x], axis=axis)
    node.replace_input_with(0, flat)
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    _insert_after(site, result, size)
    return True


def _insert_after(site: Site, result: ir.Value, size: ir.Value) -> None:
    """Let Reshape(.., size) give what the node gave; name, type and place among the graph's outputs go with it."""
    restored = site.add("Reshape", [None, size], after=True)
    name, restored_name = result.name, restored.name
    result.replace_all_uses_with(restored, replace_graph_outputs=True)
    restored.type, restored.shape = result.type, result.shape
    result.shape = None
    result.name, restored.name = restored_name, name
    producer = restored.producer()
    assert producer is not None
    producer.replace_input_with(0, result)


def _split(site: Site) -> bool:
    """Version 18 wants the sizes or the number of parts."""
    inputs = site.node.inputs
    if len(inputs) > 1 and inputs[1] is not None:
        return False
    site.node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(site.node.outputs))
    return True


def _resize_10(site: Site) -> bool:
    """Upsample 9 and Resize 10 are of one meaning."""
    site.node.op_type = "Resize"
    return True


def _resize_11(site: Site) -> bool:
    """Version 10 maps positions by x / scale and takes the floor; a runtime's rounding differs where it shrinks by nearest."""
    node = site.node
    mode = node.attributes.get("mode")
    if mode is not None and mode.is_ref():
        raise Refused("its attribute 'mode' is a parameter of the function")
    nearest = mode is None or mode.as_string() == "nearest"
    scales = node.inputs[1]
    if scales is None:
        raise Refused("it has no scales")
    values = None if scales.is_graph_input() else ir.convenience.get_const_tensor(scales)
    if nearest and (values is None or values.numpy().min() < 1):
        raise Refused("it takes the nearest value and may shrink, which version 10 does not define")
    site.put_input(2, scales)
    site.put_input(1, site.constant(np.zeros(0, np.float32)))
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
    if nearest:
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
    return True


def _resize_13(site: Site) -> bool:
    """Version 11 wants empty scales beside sizes; from 13 on they are left out, and runtimes refuse both."""
    inputs = site.node.inputs
    if len(inputs) < 4 or inputs[3] is None or inputs[2] is None:
        return False
    site.node.replace_input_with(2, None)
    return True


def _scatter(site: Site) -> bool:
    site.node.op_type = "ScatterElements"
    return True


def _roi_align(site: Site) -> bool:
    """Version 16 shifts by half a pixel unless told otherwise."""
    name = "coordinate_transformation_mode"
    site.node.attributes[name] = ir.AttrString(name, "output_half_pixel")
    return True


def _grid_sample(site: Site) -> bool:
    mode = site.node.attributes.get("mode")
    if mode is not None and mode.is_ref():
        raise Refused("its attribute 'mode' is a parameter of the function")
    renamed = {"bilinear": "linear", "bicubic": "cubic"}.get("bilinear" if mode is None else mode.as_string())
    if renamed is not None:
        site.node.attributes["mode"] = ir.AttrString("mode", renamed)
    return renamed is not None


def _group_normalization(site: Site) -> bool:
    """Version 18: scale and bias [groups]; version 21: [channels]. Each is repeated for the channels of its group."""
    shape, groups = site.shape(0), site.node.attributes["num_groups"]
    if shape is None or not isinstance(shape[1], int) or groups.is_ref():
        raise Refused("the number of its channels is not known")
    count = groups.as_int()
    spread, flat = (site.constant(np.asarray(to, np.int64)) for to in ([1, shape[1] // count], [-1]))
    column = site.constant(np.asarray([-1, 1], np.int64))
    for index in (1, 2):
        columns = site.add("Reshape", [site.node.inputs[index], column])
        wide = site.add("Expand", [columns, spread])
        site.put_input(index, site.add("Reshape", [wide, flat]))
    return True


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

RULES: dict[tuple[str, int], Rule] = {
    ("BatchNormalization", 9): Rule(_batch_normalization_9),
    ("BatchNormalization", 14): Rule(_inference_only),
    ("Clip", 11): Rule(_clip),
    ("DFT", 20): Rule(_dft),
    ("Dropout", 10): Rule(_dropout_mask),
    ("Dropout", 12): Rule(_dropout),
    ("Erf", 13): Rule(_erf),
    ("GridSample", 20): Rule(_grid_sample),
    ("GroupNormalization", 21): Rule(_group_normalization),
    ("Hardmax", 13): Rule(_softmax),
    ("LogSoftmax", 13): Rule(_softmax),
    ("Pad", 11): Rule(_pad),
    ("ReduceSum", 13): Rule(_integers("axes", 1)),
    ("Resize", 11): Rule(_resize_11),
    ("Resize", 13): Rule(_resize_13),
    ("RoiAlign", 16): Rule(_roi_align),
    ("Scatter", 11): Rule(_scatter, becomes="ScatterElements"),
    ("Slice", 10): Rule(_slice),
    ("Softmax", 13): Rule(_softmax),
    ("Split", 13): Rule(_integers("split", 1)),
    ("Split", 18): Rule(_split),
    ("Squeeze", 13): Rule(_integers("axes", 1)),
    ("TopK", 10): Rule(_top_k),
    ("Unsqueeze", 13): Rule(_integers("axes", 1)),
    ("Upsample", 9): Rule(_upsample),
    ("Upsample", 10): Rule(_resize_10, becomes="Resize"),
    **{(f"Reduce{kind}", 18): Rule(_integers("axes", 1)) for kind in _REDUCTIONS},
}
