"""The house keeps its walls: imports run one way, and what must be light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "ray", "optuna", "plotly", "openvino", "onnxruntime", "onnxscript", "PIL"}


def modules(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found
    return found


def imports(path: Path, *, top_level: bool) -> set[str]:
    """Absolute names that a module imports; only the ones that importing the module imports too when ``top_level``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if top_level:
        for node in ast.walk(tree):
            lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            if lazy or typing_only:
                skipped.update(ast.walk(node))
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_the_core_never_names_a_pass_or_a_runtime() -> None:
    for path in modules("graphopt"):
        found = {n for n in imports(path, top_level=False) if n.startswith(("graphopt.passes", "graphopt.runtimes"))}
        assert not found, f"{path} imports {found}"


@pytest.mark.parametrize(("room", "other"), [("passes", "graphopt.runtimes"), ("runtimes", "graphopt.passes")])
def test_passes_and_runtimes_never_import_each_other(room: str, other: str) -> None:
    for path in modules(room):
        assert not {n for n in imports(path, top_level=False) if n.startswith(other)}, path


def test_a_pass_imports_only_its_own_family() -> None:
    for path in modules("passes"):
        assert not {n for n in imports(path, top_level=False) if n.startswith("graphopt.passes")}, path


@pytest.mark.parametrize("room", ["graphopt", "passes", "runtimes"])
def test_no_module_imports_a_heavy_library_when_it_is_imported(room: str) -> None:
    for path in modules(room):
        found = {n.split(".")[0] for n in imports(path, top_level=True)} & HEAVY
        assert not found, f"{path} imports {found}"


@pytest.mark.parametrize("code", ["import graphopt", "import graphopt.cli; graphopt.cli.graphopt.main(['--help'])"])
def test_importing_and_help_load_no_heavy_library(code: str) -> None:
    heavy = sorted(HEAVY | {"onnx", "onnx_ir"})
    report = f"import atexit, sys; atexit.register(lambda: print('LOADED', [m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{report}\n{code}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


def test_a_command_imports_sympy_only_for_arithmetic_with_dimensions(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from graphopt.cli.startup import import_quickly
        import_quickly()
        import onnx_ir
        from graphopt import demo, pipeline
        pipeline.optimize(demo.unpack(Path(sys.argv[1])).model, timing=False)
        print("sympy" in sys.modules)
        print((onnx_ir.SymbolicDim("max(N, 4)") * 2 + 1).evaluate({"N": 3}), "sympy" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "9", "True"]


def test_what_takes_more_of_a_package_that_is_put_off_gets_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("class Base: pass\ndef double(x): return 2 * x\n")
    (tmp_path / "eager.py").write_text("from late import Base, double\nclass Own(Base): pass\n")
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from graphopt.cli.startup import later
        with later("late", frozenset({"double"})):
            import eager
        import late
        print(issubclass(eager.Own, late.Base), eager.double(2))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "4"]
