"""A model in the form of onnxruntime mobile: ``.ort`` files, what a reduced build must contain, which accelerators would do.

Which conversion is right depends on the device, and the default one is right for none in particular:

    style Fixed     all optimizations for the CPU are applied when the file is made
    style Runtime   those that would stand in the way of NNAPI or Core ML are left to the device
    platform arm    int8 activations count as fast; no layouts that only x64 has
    platform amd64  NCHWc layouts: other processors cannot run them
    none            neither: a float CNN runs at half its speed on x64

An arm64 device gets Fixed for arm, and Runtime for arm beside it where an accelerator would take most of the model. All of them
are made and timed here against the ONNX file, so that the manifest shows what the choice costs or brings on this machine.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphopt import model as models
from graphopt import partitions, targets, timing
from graphopt.contracts import Array, Example, Packaged, Progress, Runtime, Session, SessionOptions, Silent
from graphopt.errors import MissingError, ModelError
from graphopt.partitions import Cut
from graphopt.targets import Target

from .onnxruntime_providers import onnxruntime

CONFIG = "required_operators.config"
_ACCELERATORS = {"nnapi": "NNAPI (Android)", "coreml": "Core ML (iOS, ML programs)"}
_MOST_PARTITIONS = 5
_LEAST_PART = 0.8
"""An accelerator is worth trying if it takes at least this part of the nodes in at most so many partitions."""
_SECONDS = 4.0  # for timing one form against the ONNX file
_PLATFORM = {"aarch64": "arm", "arm64": "arm", "x86_64": "amd64", "AMD64": "amd64"}


@dataclass(frozen=True)
class _Form:
    """One way to convert a model."""

    style: Literal["Fixed", "Runtime"]
    platform: Literal["arm", "amd64"] | None

    @property
    def name(self) -> str:
        return f"{self.style}, {self.platform or 'no platform'}"


_FORMS = (_Form("Fixed", "arm"), _Form("Runtime", "arm"), _Form("Fixed", "amd64"), _Form("Fixed", None))


def fill(runtime: Runtime, model: Path, target: Target, folder: Path, example: Example, progress: Progress) -> Packaged:
    """Replace the ONNX file in the folder by ``.ort`` files, and add the configuration of a reduced build.

    Raises:
        ModelError: onnxruntime cannot convert the model, or cannot run what came out.
        MissingError: onnxruntime's tools are not there.
    """
    loaded = models.load(model)
    dims = _sizes(loaded, example)
    cuts = {name: partitions.estimate(loaded, targets.load(name), dims) for name in _ACCELERATORS}
    useful = {name: cut for name, cut in cuts.items() if cut is not None and _is_useful(cut)}
    platform = _PLATFORM.get(target.machine or "", "arm")
    measured: dict[str, Any] = {}
    kept: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="graphopt-") as temporary:
        for form in _FORMS:
            with progress.stage(f"converting: {form.name}"):
                path = _convert(model, Path(temporary) / form.name.replace(", ", "-"), form)
                speedup = _speedup(runtime, target, model, path, example)
            measured[form.name] = {"bytes": path.stat().st_size, "speed_here": round(speedup, 3)}
            if form.platform == platform and (form.style == "Fixed" or useful):
                kept.append(folder / path.name)
                shutil.copyfile(path, kept[-1])
        _write_config(kept, folder / CONFIG)
    model.unlink()
    answers = [_run(runtime, target, path, example) for path in kept]
    for path, answer in zip(kept[1:], answers[1:], strict=True):
        _require_near(path, answer, answers[0])
    chosen = _Form("Fixed", "arm" if platform == "arm" else "amd64")
    facts = {
        "chosen": chosen.name,
        "forms": measured,
        "speed_here": "speed of each form relative to the ONNX file, on the machine that packaged it, not on the device",
        "accelerators": {name: _cut_facts(cut) for name, cut in cuts.items() if cut is not None},
    }
    readme = _readme(kept, example, cuts, measured, chosen, runtime.availability(target).version)
    notes = [
        f"Converted for {platform} (style Fixed), at {measured[chosen.name]['speed_here']:.2f}x of the ONNX file's speed here."
    ]
    notes += [_sentence(name, cut) for name, cut in cuts.items() if cut is not None]
    return Packaged(answers[0], readme, facts, notes)


# ------------------------------------------------------------------------------------------------------------ conversion


def _convert(model: Path, folder: Path, form: _Form) -> Path:
    """The ``.ort`` file that onnxruntime's own converter makes."""
    onnxruntime()
    try:
        from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort
    except ImportError as error:
        raise MissingError(f"onnxruntime's converter cannot be imported: {error}", hint="pip install flatbuffers") from None
    source = folder / model.name  # it writes beside its input too
    folder.mkdir()
    source.symlink_to(model.absolute())
    with _silent():
        try:
            convert_onnx_models_to_ort(
                source.parent,
                output_dir=folder / "made",
                optimization_styles=[OptimizationStyle[form.style]],
                target_platform=form.platform,
                enable_type_reduction=True,
            )
        except Exception as error:
            text = " ".join(str(error).split())
            raise ModelError(f"onnxruntime cannot convert it to .ort: {text}", where=model.name) from error
    [made] = (folder / "made").glob("*.ort")
    return made


def _write_config(files: Sequence[Path], path: Path) -> None:
    """What a reduced build needs to run all of the files: operators, opsets and types, one line a domain and opset."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with _silent():
        create_config_from_models([*files], path, True)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]  # where it was made
    names = ", ".join(each.name for each in files)
    path.write_text("\n".join([f"# What {names} need{'s' if len(files) == 1 else ''}", *lines, ""]), encoding="utf-8")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The tools print what they do, and the engine warns of what the user cannot change."""
    ort = onnxruntime()
    ort.set_default_logger_severity(4)
    logging.getLogger("ort_format_model.utils").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(2)


# -------------------------------------------------------------------------------------------------------------- judgement


def _run(runtime: Runtime, target: Target, path: Path, example: Example) -> dict[str, Array]:
    with _open(runtime, target, path) as session:
        return session.run(example.feed)


def _open(runtime: Runtime, target: Target, path: Path) -> Session:
    return runtime.open(path, target, SessionOptions(threads=target.threads))


def _speedup(runtime: Runtime, target: Target, before: Path, after: Path, example: Example) -> float:
    found = timing.compare(
        lambda: _open(runtime, target, before),
        lambda: _open(runtime, target, after),
        example.feed,
        limit_seconds=_SECONDS,
        rng=np.random.default_rng(0),
        progress=Silent(),
    )
    return found.speedup


def _require_near(path: Path, actual: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Two forms of one model differ by roundings only; by those of integers, where it computes in them."""
    for name, values in expected.items():
        if values.dtype.kind != "f":
            continue
        difference = float(np.max(np.abs(actual[name] - values), initial=0.0))
        if not difference <= 0.1 * float(np.max(np.abs(values), initial=0.0)):
            raise ModelError(f"output {name!r} of the second form differs by {difference:g}", where=path.name)


def _sizes(loaded: Any, example: Example) -> dict[str, int]:
    """The sizes of the model's symbols in the example."""
    pairs = (zip(spec.shape or (), example.feed[spec.name].shape, strict=False) for spec in models.input_specs(loaded))
    return {size: given for pair in pairs for size, given in pair if isinstance(size, str)}


def _is_useful(cut: Cut) -> bool:
    return cut.taken >= _LEAST_PART * cut.nodes and cut.partitions <= _MOST_PARTITIONS


def _cut_facts(cut: Cut) -> dict[str, object]:
    left = [{"operator": operator, "why": why, "nodes": number} for operator, why, number in cut.reasons]
    return {"nodes": cut.nodes, "taken": cut.taken, "partitions": cut.partitions, "useful": _is_useful(cut), "left": left}


def _sentence(name: str, cut: Cut) -> str:
    verdict = "worth trying" if _is_useful(cut) else "hardly worth trying"
    cuts = f"{cut.partitions} partition{'s' if cut.partitions != 1 else ''}"
    text = f"{_ACCELERATORS[name]}: {verdict}; it would take {cut.taken} of {cut.nodes} nodes in {cuts}"
    left = ", ".join(f"{number} {operator} ({why})" for operator, why, number in cut.reasons[:3])
    return f"{text}. Left behind: {left}." if left else f"{text}."


# ----------------------------------------------------------------------------------------------------------------- readme


def _readme(
    kept: Sequence[Path],
    example: Example,
    cuts: Mapping[str, Cut | None],
    measured: Mapping[str, Mapping[str, Any]],
    chosen: _Form,
    version: str,
) -> str:
    """The few lines that load it, in Kotlin and Swift, and what was measured."""
    name, (given, value) = kept[0].name, next(iter(example.feed.items()))
    wanted = next(iter(example.outputs))
    dims = ", ".join(map(str, value.shape))
    rows = [
        f"| {form} | {row['bytes']:,} | {row['speed_here']:.2f} | {'chosen' if form == chosen.name else ''} |"
        for form, row in measured.items()
    ]
    listed = "\n".join(f"- {_sentence(each, cut)}" for each, cut in cuts.items() if cut is not None)
    second = ""
    if len(kept) > 1:
        second = (
            f"\n`{kept[1].name}` is for an accelerator: what that does not take is optimized on the device,\n"
            'if the session option `session.enable_saved_runtime_optimizations` is `"1"`. Measure both there.\n'
        )
    return f"""## Android (Kotlin)

```kotlin
// build.gradle.kts: implementation("com.microsoft.onnxruntime:onnxruntime-android:{version}")
val environment = OrtEnvironment.getEnvironment()
val options = OrtSession.SessionOptions().apply {{ setIntraOpNumThreads(2) }}  // addNnapi() for NNAPI
val session = environment.createSession(assets.open("{name}").readBytes(), options)
OnnxTensor.createTensor(environment, {_kotlin(value)}.wrap(numbers), longArrayOf({dims})).use {{ input ->
    session.run(mapOf("{given}" to input)).use {{ result -> println(result["{wanted}"].get().value) }}
}}
```

## iOS (Swift)

```swift
// Swift package https://github.com/microsoft/onnxruntime-swift-package-manager, or the pod onnxruntime-objc
import OnnxRuntimeBindings

let environment = try ORTEnv(loggingLevel: .warning)
let options = try ORTSessionOptions()  // appendCoreMLExecutionProvider(with:) for Core ML
try options.setIntraOpNumThreads(2)
let path = Bundle.main.path(forResource: "{Path(name).stem}", ofType: "ort")!
let session = try ORTSession(env: environment, modelPath: path, sessionOptions: options)
let input = try ORTValue(tensorData: NSMutableData(data: data), elementType: .{_swift(value)}, shape: [{dims}])
let result = try session.run(withInputs: ["{given}": input], outputNames: ["{wanted}"], runOptions: nil)
let output = try result["{wanted}"]!.tensorData() as Data
```

## Accelerators

Estimated from tables of the operators that they take, not run here. Measure on the device.

{listed}
{second}
## Smaller builds

`{CONFIG}` lists the operators and types that these files need. An onnxruntime with no others is built by

```sh
./build.sh --config MinSizeRel --minimal_build extended \\
    --include_ops_by_config {CONFIG} --enable_reduced_operator_type_support
```

## How it was converted

| style, platform | bytes | speed | |
| :--- | ---: | ---: | :--- |
{chr(10).join(rows)}

*Speed* is relative to the ONNX file's, on the machine that packaged it and not on the device: it shows what each conversion
leaves out (only x64 has NCHWc layouts, which the platforms arm and none do without). A file for arm runs on every processor.
"""


def _kotlin(value: Array) -> str:
    buffers = {"float32": "FloatBuffer", "float64": "DoubleBuffer", "int64": "LongBuffer", "int32": "IntBuffer"}
    return buffers.get(value.dtype.name, "ByteBuffer")


def _swift(value: Array) -> str:
    kinds = {"float32": "float", "int64": "int64", "int32": "int32", "uint8": "uInt8", "int8": "int8"}
    return kinds.get(value.dtype.name, "float")
