"""Train a wide VGG-like network on scikit-learn's digits and export it, for ``lowrank.py``: 1,797 images of 8x8 pixels.

Wide layers on an easy task have weights of low rank in effect. ``python benchmarks/wide_digits.py FOLDER`` writes
wide_digits.onnx, calib.npz (the training images, without labels) and eval.npz (the last third, with labels). Needs
``torch==2.13.0``, ``scikit-learn`` and ``onnxscript``; takes half a minute on one thread.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 8
BATCH = 32
SEED = 0


def build() -> Any:
    """Five convolutions of 64 to 256 channels with BatchNorm, two poolings, two linear layers of 512."""
    from torch import nn

    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *conv(1, 64),
        *conv(64, 64),
        nn.MaxPool2d(2),
        *conv(64, 128),
        *conv(128, 256),
        nn.MaxPool2d(2),
        *conv(256, 256),
        nn.Flatten(),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def main(folder: Path) -> None:
    """Train, export, and write the data."""
    import onnx_ir
    import onnx_ir.passes.common
    import torch
    from sklearn.datasets import load_digits

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # [1797, 1, 8, 8]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    train, held_out = order[: len(order) * 2 // 3], order[len(order) * 2 // 3 :]
    x, y = torch.from_numpy(images[train]), torch.from_numpy(labels[train])
    network = build()
    steps = EPOCHS * -(-len(x) // BATCH)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            shift = tuple(torch.randint(-1, 2, (2,)).tolist())
            loss = torch.nn.functional.cross_entropy(network(torch.roll(x[batch], shift, (2, 3))), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        correct = (network(torch.from_numpy(images[held_out])).argmax(1).numpy() == labels[held_out]).mean()
    folder.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        network,
        (x[:2],),
        dynamo=True,
        optimize=False,
        dynamic_shapes=({0: torch.export.Dim("N")},),
        input_names=["image"],
        output_names=["logits"],
        opset_version=20,
        verbose=False,
    )
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    onnx_ir.save(program.model, folder / "wide_digits.onnx")
    np.savez_compressed(folder / "calib.npz", image=images[train])
    np.savez_compressed(folder / "eval.npz", image=images[held_out], labels=labels[held_out])
    print(f"top-1 on {len(held_out)} held-out digits: {correct:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
