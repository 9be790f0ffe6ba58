"""``benchmarks/fuzz.py``: a run that was interrupted goes on from its notes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"


def fuzz(state: Path, figures: Path, count: int) -> tuple[int, str]:
    """How many graphs the whole run has judged, and what it said while it went on."""
    command = [sys.executable, SCRIPT, "--chunk", 2, "--count", count, "--seed", 3, "--state", state, "--json", figures]
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    graphs: int = json.loads(figures.read_text(encoding="utf-8"))["figures"]["graphs"]
    return graphs, ended.stderr


def test_a_run_goes_on_from_what_an_earlier_one_has_noted(tmp_path: Path):
    state, figures = tmp_path / "state", tmp_path / "figures.json"
    assert fuzz(state, figures, 2)[0] == 2
    with state.open("a", encoding="utf-8") as file:
        file.write('\n{"key": [3, "')  # the run was killed while it wrote this line
    graphs, said = fuzz(state, figures, 4)
    assert graphs == 4
    assert said.splitlines()[0].startswith("4 graphs")  # of the first two nothing was judged again
    graphs, said = fuzz(state, figures, 4)
    assert (graphs, said) == (4, "")
