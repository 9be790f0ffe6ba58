"""Models in a real browser: the same answers as natively, errors that say what is wrong, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import packaging, registry, targets, timing
from graphopt.contracts import Session, Silent
from graphopt.errors import DataError, ModelError
from graphopt.runtimes.web import browser, engine, package

from helpers import from_text, run, small_cnn, write

pytestmark = pytest.mark.web
WASM = targets.load("web-wasm")


@pytest.fixture(scope="module", autouse=True)
def _one_browser() -> Iterator[None]:
    yield
    engine.end()


def opened(path: Path, target: targets.Target = WASM) -> Session:
    return registry.runtime("web").open(path, target)


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    return write(small_cnn(), tmp_path / "cnn.onnx")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("name", ["web-wasm", "web-webgpu"])
def test_a_cnn_answers_in_the_browser_what_it_answers_natively(cnn: Path, image: np.ndarray, name: str) -> None:
    target = targets.load(name)
    with opened(cnn, target) as session:
        assert session.provider == target.provider
        assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [("x", np.float32, ("N", 3, 8, 8))]
        found = session.run({"x": image})
    expected = run(cnn, {"x": image})["y"]
    np.testing.assert_allclose(found["y"], expected, rtol=1e-4, atol=1e-5)


def test_webgpu_is_checked_and_not_timed() -> None:
    found = targets.availability(targets.load("web-webgpu"))
    assert (found.ok, found.timed) == (True, False)
    assert "nothing is timed" in found.why


@pytest.mark.parametrize(
    "kind", ["float", "double", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]
)
def test_every_type_goes_in_and_comes_out_unchanged(tmp_path: Path, kind: str) -> None:
    number = onnx.TensorProto.DataType.Value(kind.upper())
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", number, [None])], [value("y", number, [None])])
    path = write(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx"
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
    given = np.array([0, 1, 3, 1], dtype)
    if dtype.kind in "iu":
        given[2:] = np.iinfo(dtype).min, np.iinfo(dtype).max
    with opened(path) as session:
        found = session.run({"x": given})["y"]
    assert found.dtype == dtype
    assert found.tobytes() == given.tobytes()


def test_strings_go_in_and_come_out(tmp_path: Path) -> None:
    path = write(from_text("g (string[N] x) => (string[N] y) { y = Identity(x) }"), tmp_path / "m.onnx")
    given = np.array(["a", "ü"], dtype=object)
    with opened(path) as session:
        np.testing.assert_array_equal(session.run({"x": given})["y"], given)


def test_external_data_are_found_beside_the_model(tmp_path: Path, cnn: Path, image: np.ndarray) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(onnx.load(cnn), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with opened(path) as session:
        np.testing.assert_allclose(session.run({"x": image})["y"], run(cnn, {"x": image})["y"], rtol=1e-4, atol=1e-5)


def test_a_model_that_no_browser_can_hold_is_refused_with_the_limit(tmp_path: Path, cnn: Path) -> None:
    onnx.save(onnx.load(cnn), tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    os.truncate(tmp_path / "e.data", 5 * 10**9)  # a hole, which takes no disk
    with pytest.raises(ModelError, match=r"has 5 GB with its external data, and WebAssembly has 4\.3 GB"):
        opened(tmp_path / "e.onnx")


def test_a_feed_that_does_not_fit_is_the_datas_fault(cnn: Path, image: np.ndarray) -> None:
    with opened(cnn) as session:
        for feed, said in (({}, "misses 'x'"), ({"x": image[0]}, "has shape"), ({"x": image.astype(np.float64)}, "float64")):
            with pytest.raises(DataError, match=said):
                session.run(feed)
        assert session.run({"x": image})["y"].shape == (2, 10), "and it goes on afterwards"


@pytest.mark.parametrize("contents", [b"", b"not a model", None])
def test_a_file_that_is_no_model_is_told(tmp_path: Path, contents: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ModelError, match="there is no such file" if contents is None else "onnxruntime-web cannot load it"):
        opened(path)


def test_a_node_without_a_kernel_is_named(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]> g (float[2] x) => (float[2] y) { y = mine.Strange(x) }'
    with pytest.raises(ModelError, match="Strange"):
        opened(write(from_text(text), tmp_path / "m.onnx"))


def test_a_node_that_fails_is_told(tmp_path: Path) -> None:
    path = write(from_text("g (float[N] x, int64[M] s) => (float[K] y) { y = Reshape(x, s) }"), tmp_path / "m.onnx")
    with opened(path) as session, pytest.raises(ModelError, match=r"cannot run it: .*Reshape"):
        session.run({"x": np.ones(4, np.float32), "s": np.array([3])})


def test_times_are_cpu_time_in_the_page_and_equal_models_are_equally_fast(cnn: Path) -> None:
    feed = {"x": np.zeros((64, 3, 8, 8), np.float32)}
    found = timing.compare(
        lambda: opened(cnn), lambda: opened(cnn), feed, limit_seconds=8, rng=np.random.default_rng(0), progress=Silent()
    )
    assert found.clock == ("cpu" if sys.platform == "linux" else "wall")
    assert 0.8 < found.speedup < 1.25
    assert 0.01 < found.before_ms < 100


def test_each_node_is_timed_by_name(cnn: Path, image: np.ndarray) -> None:
    found = registry.runtime("web").profile(cnn, WASM, {"x": image}, rounds=3)
    assert {"conv1", "gemm"} <= {node.origin for node in found}
    assert all(node.milliseconds >= 0 for node in found)


def test_every_node_is_counted(cnn: Path) -> None:
    found = registry.runtime("web").partition(cnn, WASM)
    assert set(found.nodes) == {"wasm"}
    assert not found.left_behind


def test_a_page_that_crashed_is_replaced(cnn: Path, image: np.ndarray) -> None:
    with opened(cnn) as session:
        engine.engine("wasm", 1).page.crashed = True
        with pytest.raises(ModelError, match="the page crashed"):
            session.run({"x": image})
    with opened(cnn) as session:
        assert session.run({"x": image})["y"].shape == (2, 10)


def test_a_browser_that_died_is_replaced(cnn: Path, image: np.ndarray) -> None:
    found, _ = engine.browser()
    found.close()
    with opened(cnn) as session:
        assert session.run({"x": image})["y"].shape == (2, 10)


def test_a_page_that_hangs_is_ended_with_an_error_that_says_how_long_it_had(
    cnn: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(cnn) as session:
        monkeypatch.setenv(browser.SECONDS, "2")
        page, begun = engine.engine("wasm", 1).page, time.monotonic()
        with pytest.raises(browser.PageError, match="did not answer within 2 s, and was ended"):
            page.evaluate("(() => { for (;;); })()")
        with pytest.raises(ModelError, match="the browser has ended"):
            session.run({"x": image})
    assert time.monotonic() - begun < 10
    with opened(cnn) as session:
        assert session.run({"x": image})["y"].shape == (2, 10)


def test_an_interrupt_ends_the_browser_before_the_page_has_answered() -> None:
    found = browser.Browser()
    page = found.open("about:blank")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            page.evaluate("(() => { for (;;); })()")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 10
    assert not Path(found._folder).exists()


def test_nothing_is_left_of_a_killed_process(tmp_path: Path) -> None:
    deep = tmp_path / "a folder whose path is too long for the sockets of a browser"
    deep.mkdir()
    code = (
        "from graphopt.runtimes.web import engine; print(engine.browser()[0]._folder, flush=True); import time; time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(deep)}
    )
    assert child.stdout is not None
    folder = Path(child.stdout.readline().strip())
    assert folder.name.startswith("graphopt-browser-")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    until = time.monotonic() + 20
    while (folder.exists() or _running(str(folder))) and time.monotonic() < until:
        time.sleep(0.1)
    assert not folder.exists()
    assert not _running(str(folder))
    assert list(deep.iterdir()) == []


def test_a_browser_that_does_not_end_in_time_is_killed_and_its_folder_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "_END_SECONDS", 0.0)
    found = browser.Browser()
    folder = Path(found._folder)
    assert folder.is_dir()
    found.close()
    until = time.monotonic() + 20
    while (folder.exists() or _running(str(folder))) and time.monotonic() < until:
        time.sleep(0.1)
    assert not folder.exists()
    assert not _running(str(folder))


def _running(word: str) -> bool:
    if sys.platform != "linux":
        return False
    lines = (path for path in Path("/proc").glob("[0-9]*/cmdline"))
    found = []
    for path in lines:
        try:
            found.append(word.encode() in path.read_bytes())
        except OSError:
            continue
    return any(found)


def test_a_package_runs_from_a_plain_server_and_refuses_another_model(cnn: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    manifest, _ = packaging.package(cnn, site, target="web-wasm")
    assert manifest.agreement["y"].max_rel < 1e-4
    assert set(manifest.files) == {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()} - {
        "manifest.json"
    }
    other = write(small_cnn(seed=1), site / "cnn.onnx")
    assert other.stat().st_size > 0
    with pytest.raises(ModelError, match="the page fails"):
        package._outputs(site)


def test_a_page_whose_script_was_changed_does_not_run_it(cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    packaging.package(cnn, site, target="web-wasm")
    (site / "app.mjs").write_text("document.documentElement.dataset.state = 'done';", encoding="utf-8")
    monkeypatch.setenv(browser.SECONDS, "1")
    with pytest.raises(ModelError, match="still loading"):
        package._outputs(site)
