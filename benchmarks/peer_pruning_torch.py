"""Run in an environment with torch and Torch-Pruning, by ``peer_pruning.py``: what it groups, and what its pruning leaves.

python benchmarks/peer_pruning_torch.py FOLDER ZOO     writes FOLDER/NAME.onnx of each network and FOLDER/found.json
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

LEFT = (0.81, 0.69, 0.5)
_METHODS: dict[str, Callable[[], Any]] = {
    "L1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "L2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "FPGM": tp.importance.FPGMImportance,
    "Taylor": tp.importance.GroupTaylorImportance,
}


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, and a shortcut."""

    def __init__(self, i: int, inner: int, o: int, stride: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(i, inner, 1), nn.Conv2d(inner, inner, 3, stride, 1), nn.Conv2d(inner, o, 1)
        self.short = nn.Conv2d(i, o, 1, stride) if stride > 1 or i != o else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What it gives for images, or for tokens."""
        y = self.c(functional.relu(self.b(functional.relu(self.a(x)))))
        return functional.relu(y + self.short(x))


def resnet50() -> nn.Module:
    blocks, i = [], 64
    for inner, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            blocks.append(Bottleneck(i, inner, 4 * inner, stride if number == 0 else 1))
            i = 4 * inner
    stem = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Inverted(nn.Module):
    """Wide in the middle, and depthwise there."""

    def __init__(self, i: int, o: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = i * factor
        expand = [nn.Conv2d(i, wide, 1), nn.ReLU6()] if factor > 1 else []
        self.f = nn.Sequential(*expand, nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.ReLU6(), nn.Conv2d(wide, o, 1))
        self.residual = stride == 1 and i == o

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What it gives for images, or for tokens."""
        return x + self.f(x) if self.residual else self.f(x)


def mobilenetv2() -> nn.Module:
    blocks: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6()]
    i = 32
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for factor, o, count, stride in rows:
        for number in range(count):
            blocks.append(Inverted(i, o, stride if number == 0 else 1, factor))
            i = o
    head = [nn.Conv2d(320, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*blocks, *head)


class Encoder(nn.Module):
    """Attention and feed-forward, normalized before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What it gives for images, or for tokens."""
        n, length, _ = x.shape
        y = self.first(x)
        q, k, v = (f(y).view(n, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = ((q @ k.transpose(-2, -1)) / 8).softmax(-1) @ v
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Vit(nn.Module):
    """Patches, encoders, the mean of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 384, 16, 16)
        self.encoders = nn.Sequential(*(Encoder(384, 6) for _ in range(6)))
        self.norm, self.head = nn.LayerNorm(384), nn.Linear(384, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What it gives for images, or for tokens."""
        return self.head(self.norm(self.encoders(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


class Resnet56(nn.Module):
    """Of CIFAR: three stages of nine blocks.

    Shortcuts between stages are subsampled and padded with zeros, written as 1x1 convolutions that do so: Torch-Pruning
    fails on a network that pads channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        widths = [16] * 9 + [32] * 9 + [64] * 9
        before = [16, *widths[:-1]]
        self.a = nn.ModuleList(nn.Conv2d(i, o, 3, 1 if i == o else 2, 1) for i, o in zip(before, widths, strict=True))
        self.b = nn.ModuleList(nn.Conv2d(o, o, 3, 1, 1) for o in widths)
        self.short = nn.ModuleList(nn.Conv2d(i, 2 * i, 1, 2, bias=False) for i in (16, 32))
        for short in self.short:
            i = short.in_channels
            short.weight.data.zero_()
            short.weight.data[i // 2 + torch.arange(i), torch.arange(i)] = 1.0
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What it gives for images, or for tokens."""
        x = functional.relu(self.stem(x))
        shorts = iter(self.short)
        for a, b in zip(self.a, self.b, strict=True):
            y = b(functional.relu(a(x)))
            x = next(shorts)(x) if a.stride[0] > 1 else x
            x = functional.relu(x + y)
        return self.fc(x.mean((2, 3)))

    def load(self, source: Path) -> None:
        """The weights of the zoo's file: its convolutions in their order, and the classifier."""
        graph = onnx.load(source).graph
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        layers = [self.stem]
        for a, b in zip(self.a, self.b, strict=True):
            layers += [a, b]
        found = [node for node in graph.node if node.op_type in {"Conv", "Gemm"}]
        for layer, node in zip([*layers, self.fc], found, strict=True):
            layer.weight.data = torch.tensor(arrays[node.input[1]])
            layer.bias.data = torch.tensor(arrays[node.input[2]])


def networks(zoo: Path) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """The networks with an input each."""
    spec = importlib.util.spec_from_file_location("synthetic", zoo / "build_synthetic.py")
    assert spec is not None
    assert spec.loader is not None
    synthetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    image = torch.randn(1, 3, 224, 224)
    found: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    for name in ("resnet18", "yolo"):
        model, arguments, _ = synthetic.build(name)
        found[name] = (model.eval(), arguments[0])
    found |= {"resnet50": (resnet50(), image), "mobilenetv2": (mobilenetv2(), image), "vit": (Vit(), image)}
    return {name: (model.eval(), example) for name, (model, example) in found.items()}


def groups(model: nn.Module, example: torch.Tensor) -> list[dict[str, Any]]:
    """Those that Torch-Pruning finds, but that of a classifier's outputs: their sizes, and the layers whose outputs go.

    ``unknown``: of a layer, how many channels are to go that it does not have.
    """
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    with torch.no_grad():
        out = model(example)
    width = out.shape[1]
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == width]
    names = {module: name for name, module in model.named_modules()}
    found = []
    for group in graph.get_all_groups(ignored_layers=last):
        going: dict[nn.Module, set[int]] = {}
        for dependency, places in group:
            module = dependency.target.module
            carried = isinstance(module, nn.Conv2d) and module.groups > 1  # depthwise: makes no channels of its own
            if isinstance(module, nn.Conv2d | nn.Linear) and "out" in dependency.handler.__name__ and not carried:
                going.setdefault(module, set()).update(places)
        beyond = {names[m]: sum(place >= len(m.weight) for place in places) for m, places in going.items()}
        unknown = {name: count for name, count in beyond.items() if count}
        found.append({"size": len(group[0].idxs), "layers": sorted(beyond), "unknown": unknown})
    return found


def transposed(model: nn.Module) -> dict[str, str]:
    """The layers with a matrix, by the SHA-256 of that as exporters store it."""
    layers = {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {hashlib.sha256(weight.detach().T.numpy().tobytes()).hexdigest(): name for name, weight in layers.items()}


_SCOPES = ("uniform", "global", "inner channels only, uniform", "inner channels only, global")


def pruned(model: Resnet56, importance: Any, left: float, scope: str) -> tuple[nn.Module, float]:
    """The model with at most this part of its MACs, and the part that is left."""
    example = torch.randn(1, 3, 32, 32)
    before, _ = tp.utils.count_ops_and_params(model, example)
    low, high, best = 0.0, 0.9, None
    for _ in range(9):
        ratio = (low + high) / 2
        candidate = copy.deepcopy(model)
        for ours, theirs in zip(model.parameters(), candidate.parameters(), strict=True):
            theirs.grad = None if ours.grad is None else ours.grad.clone()  # a copy has none
        tp.pruner.BasePruner(
            candidate,
            example,
            importance=importance,
            pruning_ratio=ratio,
            global_pruning=scope.endswith("global"),
            ignored_layers=[candidate.fc, *([candidate.stem, *candidate.b, *candidate.short] if "inner" in scope else [])],
        ).step()
        with torch.no_grad():
            candidate(example)
        part = tp.utils.count_ops_and_params(candidate, example)[0] / before
        if part <= left:
            high, best = ratio, (candidate, part)
        else:
            low = ratio
    assert best is not None
    return best


def top1(model: nn.Module, data: Path) -> float:
    arrays = np.load(data)
    images, labels = (next(v for v in arrays.values() if v.ndim == rank) for rank in (4, 1))
    with torch.no_grad():
        given = torch.cat([model(torch.tensor(images[i : i + 100])) for i in range(0, len(images), 100)])
    return float((given.argmax(1).numpy() == labels).mean())


def differentiate(model: nn.Module, data: Path) -> None:
    """Give the parameters gradients: of the cross entropy with the model's own answers on unlabelled images."""
    [images] = [v for v in np.load(data).values() if v.ndim == 4]
    for i in range(0, len(images), 100):
        given = model(torch.tensor(images[i : i + 100]))
        functional.cross_entropy(given, given.argmax(1), reduction="sum").backward()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, zoo = Path(sys.argv[1]), Path(sys.argv[2])
    versions = {name: importlib.metadata.version(name) for name in ("torch-pruning", "torch")}
    found: dict[str, Any] = {"versions": versions, "transposed": {}, "groups": {}, "accuracy": {}}
    for name, (model, example) in networks(zoo).items():
        torch.onnx.export(model, (example,), folder / f"{name}.onnx", dynamo=True, external_data=False, verbose=False)
        found["transposed"] |= transposed(model)
        try:
            found["groups"][name] = groups(model, example)
        except Exception as error:
            found["groups"][name] = f"{type(error).__name__}: {str(error)[:120]}"
    model = Resnet56()
    model.load(zoo / "models" / "cifar_resnet56.onnx")
    model.eval()
    data = [zoo / "data" / "cifar10" / "eval.npz", folder / "others.npz"]
    found["before"] = [top1(model, one) for one in data]
    differentiate(model, zoo / "data" / "cifar10" / "calib.npz")
    for method, importance in _METHODS.items():
        for scope in _SCOPES:
            for left in LEFT:
                key = f"{method}, {scope}"
                try:
                    after, part = pruned(model, importance(), left, scope)
                    found["accuracy"].setdefault(key, {})[str(left)] = [part, *(top1(after, one) for one in data)]
                except Exception as error:
                    found["accuracy"].setdefault(key, {})[str(left)] = f"{type(error).__name__}: {str(error)[:120]}"
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
