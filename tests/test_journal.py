"""A killed run is continued where it was, and a journal is trusted only as far as it is whole and of the same job."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.journal import Journal
from graphopt.report.schema import PassRow


def row(name: str) -> PassRow:
    return PassRow(
        name=name,
        options={},
        seconds=1.0,
        kept=True,
        why="",
        nodes_before=2,
        nodes_after=1,
        bytes_before=20,
        bytes_after=10,
        changes=[],
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output with a journal of two finished passes; the second changed nothing."""
    path = tmp_path / "out.onnx"
    journal = Journal(path, {"job": 1}, resume=False)
    stage = journal.stage(0, "first") / path.name
    stage.write_bytes(b"model")
    journal.add(row("first"), stage)
    journal.add(row("second"), None)
    return path


def test_the_same_job_finds_what_was_finished(output: Path) -> None:
    done = Journal(output, {"job": 1}, resume=True).done
    assert [(each.row.name, each.stage and each.stage.read_bytes()) for each in done] == [("first", b"model"), ("second", None)]


def test_another_job_starts_anew(output: Path) -> None:
    assert Journal(output, {"job": 2}, resume=True).done == []
    assert Journal(output, {"job": 1}, resume=True).done == []  # and the old journal is gone


def test_without_resume_the_job_starts_anew(output: Path) -> None:
    assert Journal(output, {"job": 1}, resume=False).done == []


def test_a_line_that_was_cut_off_is_not_trusted(output: Path) -> None:
    file = output.with_name(".out.onnx.graphopt") / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert [each.row.name for each in Journal(output, {"job": 1}, resume=True).done] == ["first"]


def test_a_line_whose_model_is_gone_is_not_trusted(output: Path) -> None:
    (output.with_name(".out.onnx.graphopt") / "00-first" / "out.onnx").unlink()
    assert Journal(output, {"job": 1}, resume=True).done == []


def test_a_finished_job_leaves_nothing(output: Path) -> None:
    Journal(output, {"job": 1}, resume=True).remove()
    assert list(output.parent.iterdir()) == []
