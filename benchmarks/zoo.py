"""``graphopt optimize`` on every model of a folder of trained ones: what came out, and what it cost.

Each model goes through the command line as a user would type it, with labelled data where there is some; the output is
then loaded again and checked by ONNX's full checker. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx

import common


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    reports: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for source in sorted((common.zoo() / "models").glob("*.onnx")):
            out = Path(temporary) / source.name
            data = common.DATA[source.stem].checked() if source.stem in common.DATA else []
            report, ran = common.optimized(source, "-o", out, *data)
            reports[source.stem] = report
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
                    common.interval(timing, 3),
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
