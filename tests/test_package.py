"""``graphopt package``: what is in the folder, that it is what it says, and that a wrong place or model is told."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from test_cli import fails, graphopt

from graphopt import packaging, registry, targets
from graphopt.contracts import Example, Packaged, Progress
from graphopt.errors import MissingError, ModelError, UsageError
from graphopt.targets import Target

from helpers import from_text, run, small_cnn, write


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    return write(small_cnn(channels=16), tmp_path / "cnn.onnx")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.runtimes import mobile

    monkeypatch.setattr(mobile, "_SECONDS", 0.2)


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_manifest_has_size_and_hashes_of_every_file(cnn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    manifest, notes = packaging.package(cnn, folder, target="cpu")
    assert listed(folder) == sorted([*manifest.files, "manifest.json"]) == ["README.md", "cnn.onnx", "manifest.json"]
    for name, file in manifest.files.items():
        data = (folder / name).read_bytes()
        assert file.bytes == len(data)
        assert file.sha256 == hashlib.sha256(data).hexdigest()
        assert base64.b64decode(file.integrity.removeprefix("sha384-")) == hashlib.sha384(data).digest()
    written = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert written == json.loads(manifest.model_dump_json(by_alias=True))
    assert written["schema"] == 1
    assert written["source_sha256"] == hashlib.sha256(cnn.read_bytes()).hexdigest()
    assert written["inputs"] == [{"name": "x", "type": "float32", "shape": ["N", 3, 8, 8]}]
    assert any("generated" in note for note in notes)


def test_the_readme_opens_a_session_on_the_targets_provider(cnn: Path, tmp_path: Path) -> None:
    packaging.package(cnn, tmp_path / "out", target="cpu")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0].replace('{"...": ...}', "{'x': x}").replace('"cnn.onnx"', "path")
    names: dict[str, object] = {"path": str(tmp_path / "out" / "cnn.onnx"), "x": np.zeros((1, 3, 8, 8), np.float32)}
    exec(code, names)  # what the README says works as it stands
    assert np.asarray(names["outputs"]).shape == (1, 1, 10)


def test_the_ort_file_answers_what_the_model_does(cnn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    manifest, notes = packaging.package(cnn, folder, target="mobile")
    assert manifest.model == "cnn.ort"
    assert "cnn.onnx" not in manifest.files
    feed = {"x": np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)}
    for path in folder.glob("*.ort"):
        assert path.read_bytes()[4:8] == b"ORTM"
        found = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        np.testing.assert_allclose(found, run(cnn, feed)["y"], rtol=1e-4, atol=1e-5)
    assert manifest.facts["chosen"] == "Fixed, arm"
    forms = manifest.facts["forms"]
    assert set(forms) == {"Fixed, arm", "Runtime, arm", "Fixed, amd64", "Fixed, no platform"}
    assert all(form["bytes"] > 0 and form["speed_here"] > 0 for form in forms.values())
    assert any("Converted for arm" in note for note in notes)


def test_a_reduced_build_is_told_every_operator_and_where_nothing_was_made(cnn: Path, tmp_path: Path) -> None:
    packaging.package(cnn, tmp_path / "out", target="mobile")
    text = (tmp_path / "out" / "required_operators.config").read_text(encoding="utf-8")
    assert 'Conv{"inputs": {"0": ["float"]}}' in text
    assert "Gemm" in text
    assert str(tmp_path) not in text


def test_accelerators_that_would_take_the_model_get_a_form_of_their_own(cnn: Path, tmp_path: Path) -> None:
    manifest, notes = packaging.package(cnn, tmp_path / "out", target="mobile")
    nnapi = manifest.facts["accelerators"]["nnapi"]
    assert (nnapi["useful"], nnapi["partitions"], nnapi["taken"]) == (True, 1, nnapi["nodes"])
    assert "cnn.with_runtime_opt.ort" in manifest.files
    assert any(note.startswith("NNAPI (Android): worth trying") for note in notes)


def test_a_model_that_no_accelerator_takes_gets_one_form(tmp_path: Path) -> None:
    text = "g (float[4] x) => (float[4] y) { a = Sinh(x) b = Asinh(a) y = Cosh(b) }"
    manifest, notes = packaging.package(write(from_text(text), tmp_path / "m.onnx"), tmp_path / "out", target="mobile")
    assert listed(tmp_path / "out") == ["README.md", "m.ort", "manifest.json", "required_operators.config"]
    assert not manifest.facts["accelerators"]["nnapi"]["useful"]
    assert any("hardly worth trying" in note and "Sinh" in note for note in notes)


def test_the_lines_of_kotlin_and_swift_name_the_models_own_values(tmp_path: Path) -> None:
    text = "g (int64[1, 5] tokens) => (int64[1, 5] next) { next = Add(tokens, tokens) }"
    packaging.package(write(from_text(text), tmp_path / "m.onnx"), tmp_path / "out", target="mobile")
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 'mapOf("tokens" to input)' in readme
    assert "LongBuffer" in readme
    assert 'outputNames: ["next"]' in readme
    assert "elementType: .int64, shape: [1, 5]" in readme


def test_a_package_that_answers_something_else_is_not_written(
    cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Path, target: Target, folder: Path, example: Example, progress: Progress) -> Packaged:
        return Packaged({name: -value for name, value in example.outputs.items()}, "")

    monkeypatch.setattr(registry.runtime("onnxruntime"), "package", wrong)
    with pytest.raises(ModelError, match=r"does not answer what the model does: output 'y'"):
        packaging.package(cnn, tmp_path / "out", target="cpu-any")
    assert [path.name for path in tmp_path.iterdir()] == ["cnn.onnx"]


def test_a_runtime_that_packs_nothing_delivers_the_model(cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.runtime("onnxruntime"), "package", lambda *_: None)
    manifest, _ = packaging.package(cnn, tmp_path / "out", target="cpu")
    assert sorted(manifest.files) == ["README.md", "cnn.onnx"]


def test_only_an_empty_folder_or_force_is_replaced(cnn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    packaging.package(cnn, folder, target="cpu")
    (folder / "mine.txt").write_text("mine", encoding="utf-8")
    before = listed(folder)
    with pytest.raises(UsageError, match="not empty"):
        packaging.package(cnn, folder, target="cpu")
    assert listed(folder) == before
    packaging.package(cnn, folder, target="cpu", force=True)
    assert listed(folder) == ["README.md", "cnn.onnx", "manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cnn.onnx", "out"]


def test_the_example_is_the_users_first_sample(cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=images)
    seen: list[Example] = []

    def remember(model: Path, target: Target, folder: Path, example: Example, progress: Progress) -> Packaged:
        seen.append(example)
        return Packaged(example.outputs, "")

    monkeypatch.setattr(registry.runtime("onnxruntime"), "package", remember)
    packaging.package(cnn, tmp_path / "out", target="cpu", data=str(tmp_path / "data.npz"))
    np.testing.assert_array_equal(seen[0].feed["x"], images[:1])
    np.testing.assert_allclose(seen[0].outputs["y"], run(cnn, {"x": images[:1]})["y"], rtol=1e-5, atol=1e-6)


def test_a_target_that_does_not_run_here_is_not_packaged_unseen(cnn: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="cannot run here"):
        packaging.package(cnn, tmp_path / "out", target="coreml")
    assert not (tmp_path / "out").exists()


def test_the_form_of_a_target_is_data() -> None:
    assert targets.load("mobile").form == "ort"
    assert targets.load("cpu").form == "onnx"


# ---------------------------------------------------------------------------------------------------------- command line


def test_the_command_writes_the_folder_and_says_what_is_in_it(cnn: Path, tmp_path: Path) -> None:
    done = graphopt("package", cnn, "--target", "cpu", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "cnn.onnx" in done.stdout
    assert "the outputs are equal to those of cnn.onnx" in done.stdout
    onnx.checker.check_model(tmp_path / "out" / "cnn.onnx")


def test_the_command_prints_the_manifest_as_json(cnn: Path, tmp_path: Path) -> None:
    done = graphopt("package", cnn, "--target", "cpu", "-o", tmp_path / "out", "--json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))


def test_wrong_places_and_files_are_usage_errors(cnn: Path, tmp_path: Path) -> None:
    fails(2, "it is a file", done=graphopt("package", cnn, "-o", cnn))
    fails(2, "does not exist", "mkdir -p", done=graphopt("package", cnn, "-o", tmp_path / "no" / "out"))
    fails(2, "not empty", "--force", done=graphopt("package", cnn, "-o", tmp_path))
    fails(2, "unknown target", "web-wasm", done=graphopt("package", cnn, "-o", tmp_path / "out", "--target", "web-wsm"))
    fails(3, "no such file", done=graphopt("package", tmp_path / "none.onnx", "-o", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["cnn.onnx"]
