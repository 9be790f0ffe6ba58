"""``docs/simplifiers.md``: what it says in graphopt's column works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from graphopt.cli import graphopt

from helpers import small_cnn, write

PAGE = Path(__file__).parent.parent / "docs" / "simplifiers.md"
COLUMN = [row.split("|")[-2] for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| ")][1:]
WRITTEN = [code for cell in COLUMN for code in re.findall(r"`((?:--|graphopt )[^`]*)`", cell) if "engine" not in code]


def test_the_page_has_rows():
    assert len(COLUMN) > 15
    assert len(WRITTEN) > 12


@pytest.mark.parametrize("code", WRITTEN)
def test_what_the_page_says_works(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(small_cnn(), Path("in.onnx"))
    np.savez("x.npz", x=np.ones((2, 3, 8, 8), np.float32))
    Path("simplify.yaml").write_text("passes: [simplify]\n", encoding="utf-8")
    command = (
        code.removeprefix("graphopt ") if code.startswith("graphopt") else f"optimize in.onnx -o out.onnx --timing off {code}"
    )
    done = CliRunner().invoke(graphopt, shlex.split(command), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert Path("out.onnx").exists() or "inspect" in command
