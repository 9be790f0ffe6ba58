"""Targets as data, and what happens when one cannot run here."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt import targets
from graphopt.errors import MissingError, UsageError

from helpers import graphopt, small_cnn, write

SHIPPED = [
    *("coreml", "cpu", "cpu-amx", "cpu-any", "cpu-arm64", "cpu-avx2", "cpu-vnni", "cuda", "directml", "mobile", "nnapi"),
    *("openvino-cpu", "openvino-gpu", "openvino-npu", "openvino-plugin", "qnn-htp", "tensorrt", "torch", "web-wasm"),
    *("web-webgpu", "xnnpack"),
]
WITHOUT_INTEGERS = {"coreml", "cuda", "torch", "web-webgpu"}


def test_every_target_that_ships_says_how_it_wants_integers() -> None:
    assert targets.names() == SHIPPED
    styles = {name: targets.load(name).quantization for name in targets.names()}
    assert {name for name, style in styles.items() if style is None} == WITHOUT_INTEGERS
    for name, style in styles.items():
        if style is None:
            continue
        assert "Conv" in style.static, name
        assert not set(style.static) & {*style.passing, *style.direct}, name
        assert set(style.float_outputs) <= set(style.static), name
    chosen = {name: style.activations for name, style in styles.items() if style is not None}
    assert (chosen["cpu"], chosen["cpu-arm64"], chosen["qnn-htp"]) == ("uint8", "int8", "uint8")
    assert styles["cpu-any"] is not None
    assert styles["cpu-any"].saturates


def test_a_target_that_is_like_another_differs_in_what_it_says_itself() -> None:
    text = "{like: cpu, name: board, summary: s, threads: 4, quantization: {activations: int8}}"
    board, cpu = targets.parse(text, "board.yaml"), targets.load("cpu")
    assert board.quantization is not None
    assert cpu.quantization is not None
    assert (board.name, board.threads, board.quantization.activations) == ("board", 4, "int8")
    assert (board.provider, board.quantization.static) == (cpu.provider, cpu.quantization.static)


@pytest.mark.parametrize("other", ["nothing", "x", "[cpu]", "1"])
def test_a_target_like_one_that_does_not_ship_is_a_usage_error(other: str) -> None:
    with pytest.raises(UsageError, match="no target that ships"):
        targets.parse(f"{{like: {other}, name: x, summary: s}}", "x.yaml")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"system": "BeOS"}, "it is for BeOS, and this is"),
        ({"machine": "riscv64"}, "it is for riscv64 processors, and this one is"),
        ({"isa": ("amx_int9", "vnni9")}, "it needs a processor with amx_int9 or vnni9"),
        ({"runtime": "abacus", "extra": "beads"}, "no runtime called 'abacus' is installed"),
    ],
)
def test_a_target_that_cannot_run_here_says_why_and_is_a_missing_error(fields: dict[str, object], why: str) -> None:
    target = targets.load("cpu").model_copy(update=fields)
    found = targets.availability(target)
    assert not found.ok
    assert why in found.why
    assert found.hint
    with pytest.raises(MissingError, match=why):
        targets.runtime(target)


def test_what_stands_in_for_another_processor_is_checked_and_not_timed() -> None:
    found = targets.availability(targets.load("cpu").model_copy(update={"machine": "riscv64", "elsewhere": "untimed"}))
    assert (found.ok, found.timed) == (True, False)
    assert "nothing is timed" in found.why


def test_the_list_says_of_each_target_whether_it_runs_here_and_why_not() -> None:
    done = graphopt("targets")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in targets.names())
    assert "nnapi: it is for Android, and this is" in done.stdout


def test_a_provider_that_is_not_installed_is_exit_6_with_the_line_that_installs_it(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    done = graphopt("optimize", source, "--target", "tensorrt")
    assert done.returncode == 6
    assert "TensorrtExecutionProvider" in done.stderr
    assert "pip install" in done.stderr


def test_a_wrong_field_of_a_style_is_named() -> None:
    text = "{name: t, summary: s, runtime: onnxruntime, provider: p, quantization: {activations: int4}}"
    with pytest.raises(UsageError, match=r"quantization\.activations"):
        targets.parse(text, "t.yaml")
