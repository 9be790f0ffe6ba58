"""Models on arm64's kernels, under qemu: the ONNX file and the ``.ort`` file of its package, beside this machine's answers.

    python benchmarks/arm64.py FOLDER                every model of the zoo
    python benchmarks/arm64.py FOLDER MODEL...       these

FOLDER holds what is needed and is filled the first time (some 250 MB, half a minute): qemu's user mode, which runs programs of
another processor, a Python for arm64, numpy and onnxruntime for it. Needs Debian's tools (apt-get, dpkg) but no root and no
change to the system. Answers are compared, never times: an emulated processor has none.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import model, packaging, targets
from graphopt.contracts import Array, Feed
from graphopt.dataset.generate import generate
from graphopt.errors import GraphoptError

import common

QEMU = ("trixie", "amd64", ["qemu-user"])  # older ones crash when they import onnxruntime
PYTHON = (
    "bookworm",
    "arm64",
    [
        *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6"),
        *("zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5"),
    ],
)
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
CHECK = """
import sys
import numpy as np
import onnxruntime as ort
out, feed, *models = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
for index, path in enumerate(models):
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    with np.load(feed) as stored:
        feeds = {value.name: stored[f"a{place}"] for place, value in enumerate(session.get_inputs())}
    np.savez(f"{out}{index}.npz", **{f"a{place}": value for place, value in enumerate(session.run(names, feeds))})
"""


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL")
    options = parser.parse_args()
    folder = options.folder.resolve()
    prepare(folder)
    models = options.models or sorted((common.zoo() / "models").glob("*.onnx"))
    figures = [compare(folder, path) for path in models]
    text = (
        f"onnxruntime {version('onnxruntime')} for arm64 under qemu (Cortex-A53), beside the same version on this machine. "
        "*Difference*: the largest of any output, relative to its peak. The `.ort` file is what "
        "`graphopt package --target mobile` makes."
    )
    rows = [(row["model"], row["onnx"], row["ort"]) for row in figures]
    common.publish(
        "arm64", "Models on arm64's kernels", [text, common.table(("model", "ONNX", ".ort"), rows)], figures, options
    )


def prepare(folder: Path) -> None:
    """Fill the folder, once."""
    if (folder / "ready").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for (suite, architecture, packages), place in ((QEMU, "qemu"), (PYTHON, "root")):
        for package in download(folder, suite, architecture, packages):
            subprocess.run(["dpkg", "-x", package, folder / place], check=True)
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    wheels = [f"onnxruntime=={version('onnxruntime')}", f"numpy=={version('numpy')}"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.11"]
    subprocess.run([*pip, *platforms, "-d", folder / "wheels", *wheels], check=True)
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    (folder / "ready").touch()


def download(folder: Path, suite: str, architecture: str, packages: list[str]) -> list[Path]:
    """Debian packages of any suite and architecture, from the mirror that this machine uses, with an apt of their own."""
    sources = Path("/etc/apt/sources.list.d/debian.sources").read_text(encoding="utf-8")
    fields = dict(line.split(": ", 1) for line in sources.splitlines() if ": " in line and not line.startswith("#"))
    mirror = next(line.split(": ", 1)[1] for line in sources.splitlines() if line.startswith("URIs: "))
    own = folder / f"apt-{suite}"
    for part in ("state/lists/partial", "cache/archives/partial", "packages"):
        (own / part).mkdir(parents=True, exist_ok=True)
    (own / "sources.list").write_text(f"deb [signed-by={fields['Signed-By']}] {mirror} {suite} main\n", encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": own / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": own / "state",
        "Dir::Cache": own / "cache",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
    }
    apt = ["apt-get", "-qq", *(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *packages], check=True, cwd=own / "packages", stderr=subprocess.DEVNULL)
    return sorted((own / "packages").glob("*.deb"))


def compare(folder: Path, path: Path) -> dict[str, Any]:
    """One model, in both forms, on arm64; the differences from this machine's answers, in words."""
    cpu = targets.load("cpu")
    with targets.runtime(cpu).open(path, cpu) as session, tempfile.TemporaryDirectory() as temporary:
        feed = next(iter(generate(model.load(path), samples=1, runs=session.accepts).batches())).feed
        expected = list(session.run(feed).values())
        order = [spec.name for spec in session.inputs]
        files = [path.resolve()]
        said = ""
        try:
            manifest, _ = packaging.package(path, Path(temporary) / "mobile", target="mobile")
            files.append(Path(temporary) / "mobile" / manifest.model)
        except GraphoptError as error:
            said = error.what
        found = run(folder, files, {name: feed[name] for name in order}, Path(temporary))
    words = [difference(each, expected) if isinstance(each, list) else each for each in found]
    return {"model": path.stem, "onnx": words[0], "ort": words[1] if len(words) > 1 else said}


def run(folder: Path, files: list[Path], feed: Feed, temporary: Path) -> list[list[Array] | str]:
    """Run model files on arm64: the outputs of each, or why there are none."""
    np.savez(temporary / "feed.npz", **{f"a{place}": value for place, value in enumerate(feed.values())})  # type: ignore[arg-type]
    (temporary / "check.py").write_text(CHECK, encoding="utf-8")
    qemu = [folder / "qemu/usr/bin/qemu-aarch64", "-cpu", "cortex-a53", "-L", folder / "root"]
    places = ["-E", f"PYTHONPATH={folder / 'site'}", "-E", f"PYTHONHOME={folder / 'root/usr'}"]
    python = [folder / "root/usr/bin/python3.11", temporary / "check.py", temporary / "out", temporary / "feed.npz"]
    ran = common.run([*qemu, *places, *python, *files])
    found: list[list[Array] | str] = []
    for index in range(len(files)):
        stored = temporary / f"out{index}.npz"
        if not stored.exists():
            return [*found, (ran.stderr.strip().splitlines() or ["nothing was said"])[-1]]
        with np.load(stored) as arrays:
            found.append([arrays[f"a{place}"] for place in range(len(arrays.files))])
    return found


def difference(actual: list[Array], expected: list[Array]) -> str:
    """The largest difference of any output, relative to its peak."""
    most = 0.0
    for one, other in zip(actual, expected, strict=True):
        peak = float(np.max(np.abs(other.astype(np.float64)), initial=0.0)) or 1.0
        most = max(most, float(np.max(np.abs(one.astype(np.float64) - other.astype(np.float64)), initial=0.0)) / peak)
    return "equal" if most == 0 else f"{most:.1e}"


if __name__ == "__main__":
    main()
