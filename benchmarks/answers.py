"""What a model answers to the samples of an .npz, saved as .npy: its first output. Little is imported: it also runs emulated.

python benchmarks/answers.py MODEL SAMPLES.npz ANSWERS.npy
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime

BATCH = 8


def main(model: str, samples: str, answers: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with np.load(samples) as loaded:
        feed = {name: loaded[name] for name in loaded.files}
    count = len(next(iter(feed.values())))
    parts = [
        session.run(None, {name: array[start : start + BATCH] for name, array in feed.items()})[0]
        for start in range(0, count, BATCH)
    ]
    np.save(answers, np.concatenate(parts))


if __name__ == "__main__":
    main(*sys.argv[1:])
