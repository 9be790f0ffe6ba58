"""onnxruntime-web in a real browser: one browser a process, one page for each kind of engine and number of threads.

A page holds the sessions of one engine (WebAssembly, or WebGPU) with one number of threads, which onnxruntime-web fixes when
it starts. Its code stays compiled from session to session: what is timed has been through the browser's optimizing compiler.
With one thread everything runs in the page's main thread, whose CPU time Linux tells (``schedstat``): as for sessions in this
process, other processes hardly touch it.
"""

from __future__ import annotations

import atexit
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.contracts import Array, Partition, Session, TensorSpec
from graphopt.errors import GraphoptError, ModelError
from graphopt.runtimes.feeds import feed_problem

from . import npm, tensors
from .browser import Browser, Page, PageError
from .server import Server

SITE = Path(__file__).parent / "site"
LIBRARY = {"wasm": "ort.wasm.min.mjs", "webgpu": "ort.webgpu.min.mjs"}
"""The build of onnxruntime-web for each provider. (The one with both, ort.all, computes wrong numbers from int8 on WebGPU.)

A target may name another one: ``provider_options: {library: ort.all.min.mjs}``."""
_SAMPLE_MILLISECONDS = 20
"""A sample is at least this long, beside which asking for it takes little."""
_MEMORY_BYTES = 1 << 32
"""What WebAssembly addresses with 32 bits."""
_NO_MEMORY = re.compile(r"bad_alloc|[Oo]ut of memory|allocation failed|Cannot enlarge memory")
_BROKEN = re.compile(r"Aborted|memory access out of bounds|unreachable|table index|out of memory|Maximum call stack")
"""What WebAssembly says when its memory cannot be trusted any more."""
_NOISE = re.compile(
    r"Uncaught |\(in promise\) |Error: |"
    r"Can't create a session\. |failed to call OrtRun\(\)\. |ERROR_CODE: \d+, |ERROR_MESSAGE: "
)
_PLACED = re.compile(r"(All nodes|Node\(s\)) placed on \[(\w+)\]\. Number of nodes: (\d+)")
_NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\w+) \((.*)\)\s*$")
_NAMES = {"CPUExecutionProvider": "wasm", "WebGpuExecutionProvider": "webgpu", "JsExecutionProvider": "webgpu"}
_LOGGED = re.compile(r"\[E:onnxruntime:[^\]]*\] (.*)", re.DOTALL)


@dataclass
class Engine:
    """A page in which onnxruntime-web runs."""

    page: Page
    server: Server
    runner: str
    """Address of the module that the page is asked through."""
    library: str
    provider: str
    threads: int
    version: str
    renderers: list[int]

    def call(self, function: str, *arguments: Any) -> Any:
        """Ask the page; what it wrote to its console before is forgotten.

        Raises:
            PageError: As ``Page.evaluate``; an engine that cannot be trusted any more is closed.
        """
        self.page.console.clear()
        try:
            return self.page.call(self.runner, function, *arguments)
        except PageError as error:
            if error.fatal or _BROKEN.search(str(error)):
                self.close()
                error.fatal = True
            raise

    def cpu_seconds(self) -> float | None:
        """CPU time of the main threads of all pages so far; None where the system does not tell."""
        total = None
        for number in self.renderers:
            with suppress(OSError, ValueError):
                total = (total or 0.0) + int(Path(f"/proc/{number}/task/{number}/schedstat").read_text().split()[0]) / 1e9
        return total

    def close(self) -> None:
        """Close the page, and all sessions in it."""
        _engines.pop((self.library, self.provider, self.threads), None)
        self.page.close()


_engines: dict[tuple[str, str, int], Engine] = {}
_shared: tuple[int, Browser, Server, str] | None = None


def browser() -> tuple[Browser, Server]:
    """The process's browser and server, started when they are first asked for, and again when the browser has died.

    Raises:
        MissingError: No browser is installed, or it does not start.
    """
    global _shared  # noqa: PLW0603 - one browser a process
    if _shared is not None and _shared[0] == os.getpid() and not _shared[1].alive:
        end()
    if _shared is None or _shared[0] != os.getpid():
        _engines.clear()
        found = Browser()
        server = Server()
        _shared = (os.getpid(), found, server, server.share(SITE))
        atexit.register(_end, os.getpid())
    return _shared[1], _shared[2]


def _end(process: int) -> None:
    global _shared  # noqa: PLW0603 - one browser a process
    if _shared is not None and _shared[0] == process == os.getpid():
        _shared[1].close()
        _shared[2].close()
        _shared = None
        _engines.clear()


def end() -> None:
    """End this process's browser, if it has one; the next session starts another."""
    _end(os.getpid())


def engine(provider: str, threads: int, library: str | None = None) -> Engine:
    """The page for a provider and a number of threads, with this build of onnxruntime-web or the one for the provider.

    Raises:
        MissingError: The browser or onnxruntime-web is not there.
        PageError: onnxruntime-web does not load.
    """
    folder, version = npm.package()
    found, server = browser()
    key = library or LIBRARY[provider], provider, threads
    if key not in _engines:
        assert _shared is not None
        site = _shared[3]
        page = found.open(f"{site}runner.html")
        dist = server.share(folder / "dist")
        made = Engine(page, server, f"{site}runner.mjs", *key, version, [])
        made.call("start", f"{dist}{key[0]}", dist, threads)
        made.renderers = found.renderers()
        _engines[key] = made
    return _engines[key]


class WebSession(Session):
    """A model in the page. Strings and all types that JavaScript has arrays of can be fed."""

    def __init__(self, engine: Engine, model: Path, optimize: bool, *, profile: bool = False, verbose: bool = False) -> None:
        if not model.is_file():
            raise ModelError("there is no such file", where=str(model))
        verbose = verbose or engine.provider == "webgpu"  # which leaves nodes to WebAssembly, and says so in its log only
        self._engine = engine
        self._model = model
        self._key = f"{model.absolute()} {model.stat().st_mtime_ns} {model.stat().st_size}"
        options: dict[str, Any] = {"executionProviders": [engine.provider], "enableProfiling": profile}
        if not optimize:
            options["graphOptimizationLevel"] = "disabled"
        files = {"": model, **_data_files(model)}
        size = sum(path.stat().st_size for path in files.values())
        if size > _MEMORY_BYTES:
            raise _too_large(model, size)
        server = engine.server
        shared = {name: server.share(path) for name, path in files.items()}
        external = [{"path": name, "data": address} for name, address in shared.items() if name]
        try:
            found = engine.call("open", shared[""], external, options, verbose)
        except PageError as error:
            text = _plain(error, engine.page)
            if _NO_MEMORY.search(text):
                raise _too_large(model, size) from error
            raise ModelError(f"onnxruntime-web cannot load it: {text}", where=str(model)) from error
        finally:
            for address in shared.values():
                server.withdraw(address)
        self._id = found["id"]
        self._closed = False
        self._fed: dict[str, Array] = {}
        self.partition = _partition(engine.page.console, engine.provider) if verbose else None
        self.provider = engine.provider
        self.threads = engine.threads
        counted = engine.provider == "wasm" and engine.threads == 1 and engine.cpu_seconds() is not None
        self.clock = "cpu" if counted else "wall"
        self.load_seconds = found["seconds"]
        self.inputs = tuple(map(_spec, found["inputs"]))
        self.outputs = tuple(map(_spec, found["outputs"]))

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; outputs by name, in the model's order.

        Raises:
            ModelError: A node failed, or the page did.
            DataError: The feed does not fit the model.
        """
        address = self._engine.server.put()
        try:
            self._feed(feed)
            self._engine.call("run", self._id, address)
        except PageError as error:
            raise self._explain(feed, error) from error
        finally:
            data = self._engine.server.take(address)
        return tensors.decode(data)

    def time(self, feed: Mapping[str, Array], repeats: int) -> tuple[float, float]:
        """CPU seconds of the page's main thread and wall seconds of one run, measured in the page.

        The very arrays that the page has already are not sent again.

        Raises:
            ModelError, DataError: As ``run``.
        """
        try:
            if feed.keys() != self._fed.keys() or any(feed[name] is not array for name, array in self._fed.items()):
                self._feed(feed)
            self._engine.call("warm", self._id, self._key)
            begun = self._engine.cpu_seconds()
            found = self._engine.call("time", self._id, repeats, _SAMPLE_MILLISECONDS)
        except PageError as error:
            raise self._explain(feed, error) from error
        wall = found["milliseconds"] / 1000
        cpu = wall if begun is None else (self._engine.cpu_seconds() or 0.0) - begun
        return cpu / found["runs"], wall / found["runs"]

    def end_profiling(self) -> list[dict[str, Any]]:
        """What was profiled, as Chrome trace events."""
        self._engine.call("endProfiling", self._id)
        lines = [line.strip() for text in self._engine.page.console for line in text.splitlines()]
        return [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"cat"')]

    def close(self) -> None:
        """Free the model; the session cannot run afterwards."""
        if not self._closed:
            self._closed = True
            with suppress(PageError):
                self._engine.call("close", self._id)

    def _feed(self, feed: Mapping[str, Array]) -> None:
        assert not self._closed, "the session is closed"
        problem = feed_problem(feed, self.inputs)
        if problem is not None:
            raise problem
        address = self._engine.server.put(tensors.encode(feed))
        try:
            self._engine.call("feed", self._id, address)
            self._fed = dict(feed)
        finally:
            self._engine.server.take(address)

    def _explain(self, feed: Mapping[str, Array], error: PageError) -> GraphoptError:
        text = _plain(error, self._engine.page)
        return feed_problem(feed, self.inputs) or ModelError(f"onnxruntime-web cannot run it: {text}", where=self._model.name)


def _too_large(model: Path, size: int) -> ModelError:
    most = f"WebAssembly has {_MEMORY_BYTES / 1e9:.1f} GB of memory, for the weights twice while they are loaded"
    what = f"it does not fit into a browser: it has {size / 1e9:.2g} GB with its external data, and {most}"
    return ModelError(what, where=str(model), hint="Make it smaller, as 'graphopt optimize --recipe int8' does.")


def _spec(value: Mapping[str, Any]) -> TensorSpec:
    """An input or output. Scalars and unknown ranks have the same empty shape: both become None.

    A size is a number or a symbol; one that is not known has an empty symbol, or is -1, which comes as an unsigned number.
    """
    sizes = [None if size == "" or (isinstance(size, int) and size >= 1 << 31) else size for size in value["shape"]]
    return TensorSpec(value["name"], tensors.dtype(value["type"]), tuple(sizes) or None)


def _data_files(model: Path) -> dict[str, Path]:
    """The files with a model's external data, by the names that it calls them."""
    if model.suffix == ".ort":
        return {}
    import onnx

    from graphopt.model.reading import locations

    try:
        proto = onnx.load(model, load_external_data=False)
    except Exception:  # onnxruntime-web will say what is wrong with it
        return {}
    return {name: model.parent / name for name in sorted(locations(proto)) if (model.parent / name).is_file()}


def _partition(log: Sequence[str], provider: str) -> Partition:
    """Read the placements of nodes, which are logged by provider, in main graph and bodies alike."""
    nodes: Counter[str] = Counter()
    left_behind = []
    current = ""
    for line in log:
        if (placed := _PLACED.search(line)) is not None:
            current = _NAMES.get(placed[2], placed[2])
            nodes[current] += int(placed[3])
        elif (node := _NODE.search(line)) is not None and current != provider:
            left_behind.append((node[2], node[1], current))
    return Partition(dict(nodes), left_behind)


def _plain(error: PageError, page: Page) -> str:
    """The message as one line, and what onnxruntime logged about it, without codes and source files."""
    text = _NOISE.sub("", str(error)).strip()
    logged = [found[1] for line in page.console if (found := _LOGGED.search(line))]
    if logged and (text.isdigit() or not text):
        text = ""
    said = [text, *(line for line in logged[-1:] if line not in text)]
    return " ".join(" ".join(part for part in said if part).split()) or "it failed without saying why"
