"""The web: models in a real headless browser, with onnxruntime-web, and folders that a web server can deliver.

runtime.py   the Runtime        engine.py   sessions in pages        browser.py  the browser, over a pipe
server.py    what pages fetch   tensors.py  tensors as bytes         npm.py      where onnxruntime-web is
site/        the page that runs models here
"""

from .runtime import WebRuntime

__all__ = ["WebRuntime"]
