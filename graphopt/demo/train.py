"""Train the demo's network and export it: ``python -m graphopt.demo.train FOLDER`` writes digits.onnx and digits.npz there.

A CNN with BatchNorm and residual blocks on scikit-learn's digits (1,797 images of 8x8 pixels, Alpaydin & Kaynak 1998, UCI),
trained on two thirds of them with fixed seeds on one thread; the last third is the data that ships. The export is torch's own,
with nothing optimized, as users get it. Needs ``torch==2.13.0``, ``scikit-learn`` and ``onnxscript``; takes under a minute.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 30
BATCH = 64
SEED = 0


def build() -> Any:
    """The network: a stem, two residual blocks, a strided convolution, a classifier; about 25,000 parameters."""
    from torch import nn

    def conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]

    class Residual(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body = nn.Sequential(*conv(channels, channels), nn.ReLU(), *conv(channels, channels))

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.body(x) + x)

    return nn.Sequential(
        *conv(1, 16),
        nn.ReLU(),
        Residual(16),
        *conv(16, 32, 2),
        nn.ReLU(),
        Residual(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def main(folder: Path) -> None:
    """Train, export, and write the held-out digits."""
    import onnx_ir
    import onnx_ir.passes.common
    import torch
    from sklearn.datasets import load_digits

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # [1797, 1, 8, 8]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    train, held_out = order[: len(order) * 2 // 3], order[len(order) * 2 // 3 :]
    x, y = torch.from_numpy(images[train]), torch.from_numpy(labels[train])
    network = build()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        network.train()
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
    model = program.model
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(model)  # stack traces with the paths of whoever exports
    onnx_ir.save(model, folder / "digits.onnx")
    np.savez_compressed(folder / "digits.npz", image=images[held_out], labels=labels[held_out])
    print(f"top-1 on {len(held_out)} held-out digits: {correct:.4f}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Path(sys.argv[1]))
