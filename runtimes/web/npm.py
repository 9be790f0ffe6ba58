"""Where onnxruntime-web is: an npm package that the user has, in one of the places where npm puts it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from graphopt.errors import MissingError

NAME = "GRAPHOPT_NODE_MODULES"
"""The environment variable that names the folder: a ``node_modules``, or the one that holds it."""
PACKAGE = "onnxruntime-web"
_LEAST = (1, 21)  # from which on a session tells the types and shapes of its inputs


def data_folder() -> Path:
    """Where the install line puts the package: the user's own folder for data."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "share") / "graphopt"


def install_line() -> str:
    """The line that brings the package."""
    return f"npm install --ignore-scripts --prefix {data_folder()} {PACKAGE}"


def package() -> tuple[Path, str]:
    """The package's folder and version.

    Raises:
        MissingError: It is nowhere, or too old.
    """
    for place in _places():
        folder = place / PACKAGE
        if (folder / "package.json").is_file() and (folder / "dist").is_dir():
            version = str(json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"])
            if tuple(int(part) for part in version.split(".")[:2]) < _LEAST:
                least = ".".join(map(str, _LEAST))
                raise MissingError(f"{PACKAGE} {version} is older than {least}", where=str(folder), hint=install_line())
            return folder, version
    chosen = os.environ.get(NAME)
    why = f"there is no {PACKAGE} in {chosen}, which {NAME} names" if chosen else f"the npm package {PACKAGE} is not installed"
    raise MissingError(why, hint=f"{install_line()}   (npm comes with Node.js; {NAME}=FOLDER names another place)")


def _places() -> Iterator[Path]:
    """The folder that was named, and no other; else the nearest node_modules that has it, then the user's own folder."""
    if chosen := os.environ.get(NAME):
        yield from (Path(chosen), Path(chosen) / "node_modules")
        return
    here = Path.cwd()
    yield from (folder / "node_modules" for folder in (here, *here.parents))
    yield data_folder() / "node_modules"
