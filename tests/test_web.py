"""What the web runtime does without a browser: tensors as bytes, what is served, what is missing, and what logs say."""

from __future__ import annotations

import http.client
import json
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphopt import targets
from graphopt.errors import MissingError, ModelError, UsageError
from graphopt.runtimes.web import WebRuntime, browser, engine, npm, tensors
from graphopt.runtimes.web.server import ISOLATION, Server

KINDS = st.sampled_from([np.dtype(kind) for kind in tensors.NUMERIC])


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a browser and without the npm package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(npm.NAME, raising=False)
    monkeypatch.delenv(browser.NAME, raising=False)
    monkeypatch.setattr(browser, "_APPLICATIONS", ())
    monkeypatch.setattr(engine, "_shared", None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def install(folder: Path, version: str = "1.30.0") -> Path:
    package = folder / "node_modules" / npm.PACKAGE
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"version": version}), encoding="utf-8")
    return package


def get(address: str, method: str = "GET", body: bytes | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request(method, parts.path, body)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


# --------------------------------------------------------------------------------------------------------------- tensors


@given(st.dictionaries(st.text(max_size=8), KINDS.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0)))))
def test_arrays_of_every_type_come_back_bit_by_bit(values: dict[str, np.ndarray]) -> None:
    found = tensors.decode(tensors.encode(values))
    assert list(found) == list(values)
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


def test_an_empty_array_and_a_transposed_one_come_back() -> None:
    values = {"none": np.empty((0, 3), np.int64), "turned": np.arange(6, dtype=np.float16).reshape(2, 3).T}
    found = tensors.decode(tensors.encode(values))
    assert found["none"].shape == (0, 3)
    np.testing.assert_array_equal(found["turned"], values["turned"])


def test_strings_come_back() -> None:
    value = np.array([["a", "ü"], ["", "日本"]], dtype=object)
    np.testing.assert_array_equal(tensors.decode(tensors.encode({"s": value}))["s"], value)


def test_the_data_of_each_tensor_begins_at_a_multiple_of_eight_bytes() -> None:
    data = tensors.encode({"odd": np.ones(3, np.uint8), "wide": np.ones(2, np.float64)})
    assert len(data) % 8 == 0
    assert data[-16:] == np.ones(2).tobytes()


def test_a_type_that_browsers_do_not_have_is_named() -> None:
    with pytest.raises(ModelError, match="complex64") as caught:
        tensors.encode({"x": np.ones(2, np.complex64)})
    assert "'x'" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- server


def test_every_answer_isolates_the_page(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.mjs").write_text("export {};", encoding="utf-8")
    for address in (server.share(tmp_path) + "a.mjs", server.put(b"1"), f"{server.address}nothing"):
        response, _ = get(address)
        assert {name: response.headers[name] for name in ISOLATION} == ISOLATION


def test_modules_and_webassembly_have_the_types_that_browsers_ask_for(server: Server, tmp_path: Path) -> None:
    folder = server.share(tmp_path)
    for name, kind in (("a.mjs", "text/javascript"), ("a.wasm", "application/wasm"), ("a.html", "text/html")):
        (tmp_path / name).write_bytes(b"x")
        response, data = get(folder + name)
        assert (response.status, response.headers["Content-Type"], data) == (200, kind, b"x")


def test_nothing_outside_of_what_is_shared_is_served(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s", encoding="utf-8")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "link").symlink_to(tmp_path / "secret")
    folder = server.share(shared)
    for address in (f"{folder}../secret", f"{folder}..%2fsecret", f"{folder}link", folder.replace(server.address, "http://x/")):
        host = urlsplit(server.address).netloc
        response, data = get(f"http://{host}{urlsplit(address).path}")
        assert (response.status, data) == (404, b"")


def test_a_file_with_an_odd_name_is_served_until_it_is_withdrawn(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a b#%.onnx"
    path.write_bytes(b"model")
    address = server.share(path)
    assert get(address)[1] == b"model"
    server.withdraw(address)
    assert get(address)[0].status == 404


def test_what_the_page_posts_is_taken_once(server: Server) -> None:
    address = server.put()
    assert get(address, "POST", b"outputs")[0].status == 204
    assert server.take(address) == b"outputs"
    assert get(address, "POST", b"more")[0].status == 404


# --------------------------------------------------------------------------------------------------------------- missing


def test_a_missing_package_is_told_with_the_line_that_installs_it(nowhere: Path) -> None:
    found = WebRuntime().availability(targets.load("web-wasm"))
    assert not found.ok
    assert "onnxruntime-web is not installed" in found.why
    assert f"npm install --ignore-scripts --prefix {nowhere / 'data' / 'graphopt'} onnxruntime-web" in found.hint


def test_a_missing_browser_is_told_with_the_line_that_installs_it(nowhere: Path) -> None:
    install(nowhere)
    found = WebRuntime().availability(targets.load("web-wasm"))
    assert not found.ok
    assert "no Chromium is installed" in found.why
    assert "apt-get install --no-install-recommends chromium" in found.hint


def test_a_browser_that_was_named_and_is_not_there_is_named_again(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(nowhere)
    monkeypatch.setenv(browser.NAME, "no-such-browser")
    with pytest.raises(MissingError, match="GRAPHOPT_BROWSER is 'no-such-browser'"):
        WebRuntime().open(Path("m.onnx"), targets.load("web-wasm"))


def test_a_browser_that_ends_at_once_is_an_error_with_what_it_said(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(nowhere)
    command = nowhere / "chromium"
    command.write_text("#!/bin/sh\necho 'cannot open display' >&2\nexit 1\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{nowhere}:/usr/bin:/bin")
    monkeypatch.setenv(browser.NAME, str(command))
    monkeypatch.setattr(tempfile, "tempdir", str(nowhere))
    found = WebRuntime().availability(targets.load("web-wasm"))
    assert not found.ok
    assert found.why == "the browser does not start: cannot open display"
    assert not [*nowhere.glob("graphopt-browser-*")], "its folder is gone"


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf"])
def test_a_time_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert browser.patience() == 600
    monkeypatch.setenv(browser.SECONDS, text)
    with pytest.raises(UsageError, match=f"GRAPHOPT_PAGE_SECONDS is '{text}'"):
        browser.patience()


@pytest.mark.parametrize("place", ["here", "above", "own"])
def test_the_package_is_found_where_npm_puts_it(nowhere: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    below = nowhere / "project" / "src"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    folder = {"here": below, "above": nowhere, "own": nowhere / "data" / "graphopt"}[place]
    package = install(folder)
    assert npm.package() == (package, "1.30.0")


@pytest.mark.parametrize("named", ["", "node_modules"])
def test_a_folder_that_was_named_is_the_only_one_looked_at(nowhere: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    install(nowhere)
    elsewhere = nowhere / "elsewhere"
    monkeypatch.setenv(npm.NAME, str(elsewhere / named))
    with pytest.raises(MissingError, match=f"no onnxruntime-web in .*{named}, which GRAPHOPT_NODE_MODULES names"):
        npm.package()
    package = install(elsewhere)
    assert npm.package() == (package, "1.30.0")


def test_an_old_package_is_refused(nowhere: Path) -> None:
    install(nowhere, "1.18.0")
    with pytest.raises(MissingError, match=r"1\.18\.0 is older than 1\.21"):
        npm.package()


def test_an_unknown_provider_is_refused(nowhere: Path) -> None:
    target = targets.load("web-wasm").model_copy(update={"provider": "webnn"})
    assert "not with webnn" in WebRuntime().availability(target).why


# ------------------------------------------------------------------------------------------------------------------ logs


def test_placements_are_read_from_the_log() -> None:
    place = "2026-01-01 00:00:00 [V:onnxruntime:, session_state.cc:1377 VerifyEachNodeIsAssignedToAnEp]"
    log = [
        f"{place} Node placements",
        f"{place}  Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 2",
        f"{place}   Conv (first conv)",
        f"{place}   Conv (second)",
        f"{place}  Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1",
        f"{place}   Shape (how large)",
        "something else",
    ]
    found = engine._partition(log, "webgpu")
    assert found.nodes == {"webgpu": 2, "wasm": 1}
    assert found.left_behind == [("how large", "Shape", "wasm")]


def test_a_file_that_has_gone_is_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    server = Server()
    address = server.share(path)
    path.unlink()
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.netloc)
    connection.request("GET", parts.path)
    with pytest.raises(http.client.RemoteDisconnected):
        connection.getresponse()
    connection.close()
    server.close()
    assert capfd.readouterr().err == ""
