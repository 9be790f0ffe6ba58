"""A folder that any web server can deliver: the model, onnxruntime-web, and a page that runs the model on an example.

    index.html   the page           app.mjs     what it does          model.mjs   the model, for other pages
    ort/         onnxruntime-web    files.mjs   names and hashes      tensors.mjs, example-*.bin

Scripts, the model and the example are fetched with the hash that they must have (Subresource Integrity). Before the package
counts, a plain static server, without special headers, delivers the very folder to a browser, and the page's outputs are read.
"""

from __future__ import annotations

import functools
import html
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

from graphopt import packaging
from graphopt.contracts import Example, Packaged
from graphopt.errors import ModelError
from graphopt.targets import Target

from . import engine, npm, tensors
from .browser import PageError, patience

_APP = Path(__file__).parent / "app"
_GLUE = {"wasm": "ort-wasm-simd-threaded", "webgpu": "ort-wasm-simd-threaded.asyncify"}
"""The WebAssembly that each build of onnxruntime-web loads, as .mjs and .wasm."""
_SCRIPTS = ("app.mjs", "model.mjs", "tensors.mjs", "files.mjs")
_POLL_SECONDS = 0.05


def fill(model: Path, target: Target, folder: Path, example: Example) -> Packaged:
    """Add what the web needs to the folder that holds the model, open it in a browser, and read what it computes.

    Raises:
        ModelError: The page fails.
        MissingError: The browser or onnxruntime-web is not there.
    """
    version = _write(model, target, folder, example)
    outputs = _outputs(folder)
    if target.provider == "webgpu":
        notes = ["WebGPU ran on the processor here: the outputs are right, and nothing is known of its speed."]
    else:
        notes = []
    inputs = [
        f"{json.dumps(name)}: tensor('{'string' if value.dtype == object else value.dtype.name}', data, {[*value.shape]})"
        for name, value in example.feed.items()
    ]
    readme = Template(_README).substitute(inputs=",\n  ".join(inputs))
    return Packaged(tensors.decode(outputs), readme, {"onnxruntime_web": version, "provider": target.provider}, notes)


def _write(model: Path, target: Target, folder: Path, example: Example) -> str:
    package, version = npm.package()
    library, glue = engine.LIBRARY[target.provider], _GLUE[target.provider]
    (folder / "ort").mkdir()
    for name in (library, f"{glue}.mjs", f"{glue}.wasm"):
        shutil.copyfile(package / "dist" / name, folder / "ort" / name)
    for path in (_APP / "app.mjs", _APP / "model.mjs", engine.SITE / "tensors.mjs"):
        shutil.copyfile(path, folder / path.name)
    (folder / "example-inputs.bin").write_bytes(tensors.encode(example.feed))
    (folder / "example-outputs.bin").write_bytes(tensors.encode(example.outputs))
    hashes = {name: file.integrity for name, file in packaging.files(folder).items()}
    constants = {
        "MODEL": model.name,
        "PROVIDER": target.provider,
        "INTEGRITY": {name: hashes[name] for name in (model.name, "example-inputs.bin", "example-outputs.bin")},
    }
    lines = [f"export const {name} = {json.dumps(value, indent=2)};" for name, value in constants.items()]
    text = "\n".join(["// What model.mjs loads, and the hashes that it must have.", "", *lines, ""])
    (folder / "files.mjs").write_text(f"{text}export * as ort from './ort/{library}';\n", encoding="utf-8")
    hashes = {name: file.integrity for name, file in packaging.files(folder).items()}
    checked = {f"./{name}": hashes[name] for name in (*_SCRIPTS, f"ort/{library}", f"ort/{glue}.mjs")}
    page = Template((_APP / "index.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(model.stem),
        summary=html.escape(f"Packaged by graphopt for {target.summary}."),
        importmap=json.dumps({"integrity": checked}, indent=2).replace("<", "\\u003c"),
        integrity=hashes["app.mjs"],
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    return version


def _outputs(folder: Path) -> bytes:
    """What the page in a folder computes."""
    browser, server = engine.browser()
    address = server.put()
    try:
        with _served(folder) as site:
            page = browser.open(f"{site}index.html")
            try:
                until = time.monotonic() + patience()
                while (state := page.evaluate("document.documentElement.dataset.state")) not in {"done", "failed"}:
                    if time.monotonic() > until:
                        raise ModelError(f"the page is still {state} after {patience():g} s")
                    time.sleep(_POLL_SECONDS)
                if state == "failed":
                    said = page.evaluate("document.getElementById('state').textContent")
                    raise ModelError(f"the page fails: {said}")
                sent = f"fetch({json.dumps(address)}, {{ method: 'POST', mode: 'no-cors', body: tensors.encode(app.outputs) }})"
                modules = "Promise.all([import('./app.mjs'), import('./tensors.mjs')])"
                page.evaluate(f"{modules}.then(([app, tensors]) => {sent}).then(() => null)")
            finally:
                page.close()
    except PageError as error:
        raise ModelError(f"the page fails: {error}") from error
    finally:
        data = server.take(address)
    return data


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """A plain static server, as Python brings it; the address ends with a slash."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 - declared by the base class
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing."""


_README = """## Try it

```sh
python -m http.server 8000      # in this folder; any static web server does
```

Then open <http://localhost:8000>: the page runs the model on the example, compares the outputs with the expected ones, and
times it. (Browsers load modules from a server only, not from a file.)

## Use it in your own page

```js
import { load, tensor } from './model.mjs';

const model = await load();
const outputs = await model.run({
  $inputs,
});
```

`data` is a typed array (`Float32Array`, `BigInt64Array`, ...) with that many numbers; `outputs` has a tensor for each name,
with `data` and `dims`.

Copy everything but `index.html`, `app.mjs` and the example. The server must know the types of two suffixes: `.mjs` is
`text/javascript`, `.wasm` is `application/wasm`; compress `.wasm` and the model (gzip or brotli) if it can.

## Threads

Several threads need shared memory, which browsers give to pages that are delivered with two headers. Without them one thread is
used.

```
Cross-Origin-Opener-Policy: same-origin
Cross-Origin-Embedder-Policy: require-corp
```

## Integrity

`index.html` names the SHA-384 of each script, `files.mjs` those of the model and the example: a browser refuses a file that is
another one. After changing a file, package again. `ort/` is onnxruntime-web (MIT licence), unchanged.
"""
