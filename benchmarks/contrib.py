"""onnxruntime's own operators, group by group: which of them pay on this machine's CPU, beside the lossless passes alone.

Takes the transformers among the models of ``--models`` (or GRAPHOPT_EXPORTS) and of the zoo (GRAPHOPT_ZOO). Exports of
untrained networks have biases of zero and scales of one, which ``fuse`` removes; they are given random ones first. What the
file of ``--json`` holds already is not measured again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import model
from graphopt.passes.fuse.contrib import GROUPS, LEAST_GAIN, apply_group

import judging
import lossless
from common import arguments, interval, publish, table

TRANSFORMERS = "bert_dynamo distilbert_dynamo gpt2_dynamo vit_dynamo llama_dynamo swin_dynamo whisperenc_dynamo stories260k"


def prepared(source: Path, folder: Path) -> Path:
    """The model with weights as training would leave them, after the lossless passes."""
    proto, rng = onnx.load(source), np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 1 and tensor.dims[0] > 1:
            array = onnx.numpy_helper.to_array(tensor)
            if (array == array[0]).all() and array[0] in {0, 1}:
                noise = array + 0.1 * rng.standard_normal(array.shape)
                tensor.CopyFrom(onnx.numpy_helper.from_array(noise.astype(np.float32), tensor.name))
    graph = ir.from_proto(proto)
    lossless.apply(graph)
    return model.save(graph, folder / "lossless.onnx").path


def measured(base: Path, group: str, folder: Path) -> dict[str, Any] | None:
    """A group against the model without it; None if it finds nothing."""
    graph = model.load(base)
    made = apply_group(graph, group)
    if not made:
        return None
    lossless.apply(graph)
    path = model.save(graph, folder / "candidate.onnx").path
    row: dict[str, Any] = {"made": ", ".join(f"{count} {name}" for name, count in sorted(Counter(made.values()).items()))}
    try:
        onnx.checker.check_model(path, full_check=True)
        row["max_rel"] = max(judging.differences(base, path).values())
        return row | asdict(judging.timed(base, path))
    except Exception as error:
        return row | {"wrong": " ".join(str(error).split())[:160]}


def cells(name: str, group: str, row: dict[str, Any]) -> tuple[str, ...]:
    if "wrong" in row:
        return name, group, row["made"], row["wrong"], "", "no"
    return (
        name,
        group,
        row["made"],
        f"{row['max_rel']:.0e}",
        interval(row, 3),
        "yes" if row["speedup_low"] >= LEAST_GAIN else "no",
    )


def main() -> None:
    parser = arguments(__doc__)
    given = Path(os.environ["GRAPHOPT_EXPORTS"]) if "GRAPHOPT_EXPORTS" in os.environ else None
    parser.add_argument("--models", type=Path, default=given, metavar="DIR", help="models to take [default: $GRAPHOPT_EXPORTS]")
    parser.add_argument("--only", nargs="*", default=TRANSFORMERS.split(), metavar="NAME", help="models to take of these")
    options = parser.parse_args()
    folders = [options.models, *([Path(zoo) / "models"] if (zoo := os.environ.get("GRAPHOPT_ZOO")) else [])]
    sources = {path.stem: path for folder in folders if folder for path in folder.glob("*.onnx")}
    known = json.loads(options.json.read_text())["figures"] if options.json and options.json.exists() else {}
    figures: dict[str, Any] = {}
    rows = []
    for name in [name for name in options.only if name in sources]:
        with tempfile.TemporaryDirectory() as temporary:
            base: Path | None = None
            for group in GROUPS:
                row = known.get(f"{name} {group}", {"wrong": "not measured"})
                if row and "wrong" in row:
                    base = base or prepared(sources[name], Path(temporary))
                    row = measured(base, group, Path(temporary))
                figures[f"{name} {group}"] = row
                if row:
                    rows.append(cells(name, group, row))
                    print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    text = (
        "Each group of operators by itself, added to what the lossless passes make of the model (*packed* includes"
        " *attention*). The difference is the largest of any output at several sizes, relative to its peak; the speed-up"
        " is that of one thread by CPU time against the model without the group. `graphopt optimize --contrib` measures"
        f" the same on the user's target and data, and keeps a group if the interval begins at {LEAST_GAIN} or more:"
        " *pays*. Exports of untrained networks were given random biases and scales where they have zeros and ones, which"
        " the lossless passes would remove."
    )
    header = ("model", "group", "operators", "difference", "speed-up, 95 % interval", "pays")
    publish("contrib", "onnxruntime's own operators, where they pay", [text, table(header, rows)], figures, options)


if __name__ == "__main__":
    main()
