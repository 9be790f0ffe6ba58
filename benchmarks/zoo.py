"""``graphopt optimize`` on every model of a folder of trained ones: what came out, and what it cost.

Each model goes through the command line as a user would type it, with labelled data where there is some; the output is
then loaded again and checked by ONNX's full checker. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import onnx

import common

IMAGENET = "data/imagenet/eval"
DATA: dict[str, list[str]] = {
    "cifar_resnet20": ["--eval", "data/cifar10/eval.npz"],
    "cifar_resnet20_legacy": ["--eval", "data/cifar10/eval.npz"],
    "cifar_resnet56": ["--eval", "data/cifar10/eval.npz"],
    "mnist_8": ["--eval", "data/mnist/eval.npz"],
    "mobilenet_v1_025": ["--eval", IMAGENET, "--images", "crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225"],
    "mobilenet_v2": ["--eval", IMAGENET, "--images", "crop=224,scale=127.5,mean=1,std=1,label-offset=1"],
    "squeezenet1_1": ["--eval", IMAGENET, "--images", "crop=224,scale=1,channels=bgr,mean=104:117:123,std=1"],
}


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    folder = common.zoo()
    reports: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for source in sorted((folder / "models").glob("*.onnx")):
            out = Path(temporary) / source.name
            data = [str(folder / part) if part.startswith("data/") else part for part in DATA.get(source.stem, [])]
            ran = common.graphopt("optimize", source, "-o", out, *data, "--json")
            report = reports[source.stem] = json.loads(ran.stdout)
            onnx.checker.check_model(out, full_check=True)
            before, after, timing = report["input"], report["output"], report["timing"]
            validation = report["validation"]
            metric = validation["metric"]
            rows.append(
                (
                    source.stem,
                    f"{before['nodes']} → {after['nodes']}",
                    f"{before['bytes'] / 1e3:,.0f} → {after['bytes'] / 1e3:,.0f}",
                    f"{timing['before_ms']:.3f} → {timing['after_ms']:.3f}",
                    f"{timing['speedup']:.3f} ({timing['speedup_low']:.3f} to {timing['speedup_high']:.3f})",
                    f"{max(row['max_rel'] for row in validation['outputs'].values()):.1e}",
                    f"{metric['name']} {metric['before']:.4f} → {metric['after']:.4f}" if metric else "generated inputs",
                    f"{ran.cpu_seconds:.1f}",
                    f"{ran.peak_rss_bytes / 1e6:.0f}",
                )
            )
    header = ("model", "nodes", "kB", "ms (CPU time)", "speed-up, 95 % interval", "max rel", "metric", "CPU s", "peak MB")
    text = "The whole command, verified and timed. *Max rel* is the largest difference of any output, relative to its peak."
    common.publish(
        "zoo", "Every model of the zoo through `graphopt optimize`", [text, common.table(header, rows)], reports, options
    )


if __name__ == "__main__":
    main()
