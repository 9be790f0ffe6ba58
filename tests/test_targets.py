"""Targets as data, and what happens when one cannot run here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from graphopt import targets
from graphopt.errors import MissingError, UsageError

from helpers import small_cnn, write


def test_every_target_that_ships_says_how_it_wants_integers() -> None:
    styles = {name: targets.load(name).quantization for name in targets.names()}
    assert {"cpu", "cpu-any", "cpu-arm64", "openvino-cpu", "qnn-htp", "tensorrt"} <= set(styles)
    for name, style in styles.items():
        assert style is not None, name
        assert "Conv" in style.static, name
        assert not set(style.static) & {*style.passing, *style.direct}, name
        assert set(style.float_outputs) <= set(style.static), name
    chosen = {name: style.activations for name, style in styles.items() if style is not None}
    assert (chosen["cpu"], chosen["cpu-arm64"], chosen["qnn-htp"]) == ("uint8", "int8", "uint8")
    assert styles["cpu-any"] is not None
    assert styles["cpu-any"].saturates


def test_a_provider_that_is_not_installed_is_exit_6_with_the_line_that_installs_it(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    command = [sys.executable, "-m", "graphopt", "optimize", str(source), "--target", "tensorrt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "TensorrtExecutionProvider" in done.stderr
    assert "pip install" in done.stderr


def test_a_target_of_another_processor_family_is_missing_here() -> None:
    elsewhere = targets.load("cpu").model_copy(update={"machine": "riscv64"})
    with pytest.raises(MissingError, match="it is riscv64, and this machine is"):
        targets.runtime(elsewhere)


def test_a_wrong_field_of_a_style_is_named() -> None:
    text = "{name: t, summary: s, runtime: onnxruntime, provider: p, quantization: {activations: int4}}"
    with pytest.raises(UsageError, match=r"quantization\.activations"):
        targets.parse(text, "t.yaml")
