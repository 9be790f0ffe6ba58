"""onnxruntime's errors as graphopt's: what, where and what to do, without its codes, source files and C++ signatures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from graphopt.contracts import Array, TensorSpec
from graphopt.errors import DataError, GraphoptError, ModelError

from .feeds import feed_problem

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:")
_SOURCE = re.compile(r"\S+\.(?:h|hpp|cc|cpp):\d+ ")
_SIGNATURE = re.compile(  # what follows a full path: "type ns::Class::method(arguments) const [with T = ...] "
    r"\S*onnxruntime_src\S+:\d+ [^()]*(?:\((?:[^()]|\([^()]*\))*\))+(?: const)?(?: \[with [^\]]*\])? "
)
_FUNCTION = re.compile(r"\S+\.(?:h|hpp|cc|cpp):\d+ \w+ ")


def plain(error: Exception) -> str:
    """The message as one line, without onnxruntime's codes, source files and C++ signatures."""
    text = " ".join(str(error).split())
    for noise in (_CODE, _SIGNATURE, _FUNCTION, _SOURCE):
        text = noise.sub("", text)
    return text.strip()


def run_error(error: Exception, model: str, feed: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> GraphoptError:
    """What was wrong with a run: the feed, or a node (named)."""
    problem = feed_problem(feed, inputs)
    if problem is not None:
        return problem
    text = plain(error)
    failed = re.match(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: (.*)", text)
    if failed is not None:
        op_type, name, text = failed.groups()
        return ModelError(f"onnxruntime failed: {text}", where=f"{model}, {op_type} node {name!r}")
    if type(error).__name__ == "InvalidArgument":  # what onnxruntime itself finds wrong with a feed
        return DataError(text, where=model)
    return ModelError(f"onnxruntime cannot run it: {text}", where=model)


def load_error(error: Exception, model: Path | bytes) -> ModelError:
    """What was wrong with a model that cannot be loaded."""
    text = plain(error)
    where = None
    if isinstance(model, Path):
        where = str(model)
    hint = None
    opset = re.search(r"Opset (\d+) is under development.* domain (\S+) is till opset (\d+)", text)
    if opset is not None:
        text = f"its opset {opset[1]} of domain {opset[2]} is newer than this onnxruntime, which takes up to {opset[3]}"
        hint = "Install a newer onnxruntime, or convert the model to an older opset."
    elif "max supported IR version" in text:
        hint = "Install a newer onnxruntime, or write the model with an older IR version."
    elif "is not a registered function/op" in text:
        hint = "It belongs to a library that is not loaded here. optimize --verify off --timing off rewrites without running."
    elif "Could not find an implementation" in text:
        hint = "This onnxruntime has no kernel for the node with these types."
    return ModelError(f"onnxruntime cannot load it: {text}", where=where, hint=hint)
