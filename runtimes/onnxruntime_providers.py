"""Execution providers: which one a target means, how a session gets it, and whether it really works here.

A provider is built into the installed onnxruntime (CUDA, Core ML, ...) or comes as a *plugin*: a package of its own whose
library is registered with onnxruntime and offers devices (OpenVINO, QNN); the target says which. ``get_available_providers()``
is a list of names, which onnxruntime-gpu fills on machines without a GPU too: a provider counts as available when a model of
one node ran on it and computed what it must.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from graphopt.environment import installed, no_telemetry
from graphopt.errors import MissingError
from graphopt.targets import Target, install_line

CPU = "CPUExecutionProvider"
_plugged_in: set[str] = set()
"""Providers that this process has registered: onnxruntime lists them with its own from then on."""
_INSTALL = "pip install 'graphopt[cpu]'"
_NVIDIA = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
_SWAP = "pip uninstall -y onnxruntime && "
"""Packages that contain onnxruntime overwrite each other, so that one must go first."""


@dataclass(frozen=True)
class Choice:
    """How a session gets the provider: by name with options, or through devices of a plugin."""

    names: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Built-in providers in the order in which nodes are offered to them."""
    devices: list[Any] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    simulated: bool = False

    def attach(self, settings: Any) -> dict[str, Any]:
        """Put the provider into a SessionOptions; the arguments that InferenceSession needs besides."""
        if self.devices:
            settings.add_provider_for_devices(self.devices, self.options)
            return {}
        return {"providers": self.names}


def onnxruntime() -> Any:
    """The module with its telemetry off.

    Raises:
        MissingError: It is not installed, or an empty package is left of it.
    """
    no_telemetry()
    try:
        import onnxruntime as module
    except ImportError as error:
        raise MissingError(f"onnxruntime cannot be imported: {error}", hint=_INSTALL) from error
    if not hasattr(module, "InferenceSession"):  # what is left when one of two packages that provide it is uninstalled
        what = "onnxruntime cannot be imported: the installed one is an empty package"
        raise MissingError(what, hint="pip install --force-reinstall --no-deps onnxruntime")
    module.disable_telemetry_events()  # for a process that imported it earlier
    return module


def choose(target: Target) -> Choice:
    """Find the target's provider.

    Raises:
        MissingError: onnxruntime, the plugin or the device is not here; the message says what is, and the line that mends it.
    """
    ort = onnxruntime()
    if target.plugin is not None:
        return _plugged(ort, target, target.plugin)
    known = ort.get_available_providers()
    if target.provider not in known:
        built_in = ", ".join(name for name in known if name not in _plugged_in)
        why = f"this onnxruntime {ort.__version__} has no {target.provider} (it has {built_in})"
        raise MissingError(why, hint=_install_built_in(target))
    if target.provider in _NVIDIA:
        _preload(ort)
    after = [(name, dict(options)) for name, options in target.fallbacks.items() if name in known]
    return Choice(names=[(target.provider, dict(target.provider_options)), *after])


def _plugged(ort: Any, target: Target, package: str) -> Choice:
    try:
        plugin = importlib.import_module(package)
    except ImportError as error:
        why = f"the plugin {package} cannot be imported: {error}"
        raise MissingError(why, hint=install_line(target) or f"pip install {package.replace('_', '-')}") from error
    library = Path(plugin.get_library_path())
    _register(ort, target.provider, library)
    offered = [device for device in ort.get_ep_devices() if device.ep_name == target.provider]
    for wanted in (target.device, target.simulator):
        chosen = [device for device in offered if wanted is None or wanted in _kinds(device)]
        if chosen:
            options = {name: _located(value, library.parent) for name, value in target.provider_options.items()}
            return Choice(devices=chosen[:1], options=options, simulated=wanted is not None and wanted != target.device)
    version = installed(package.replace("_", "-")) or ""
    there = f"only {', '.join(sorted({kind for device in offered for kind in _kinds(device)}))}" if offered else "none"
    why = f"the plugin {package} {version} is installed and offers no {target.device or 'device'} on this machine ({there})"
    raise MissingError(why, hint="Choose another target ('graphopt targets').")


@cache
def _register(ort: Any, provider: str, library: Path) -> None:
    """Register a plugin's library, once a process.

    Raises:
        MissingError: onnxruntime cannot load it.
    """
    if not hasattr(ort, "register_execution_provider_library"):
        raise MissingError(f"onnxruntime {ort.__version__} takes no plugins", hint="pip install -U onnxruntime")
    try:
        ort.register_execution_provider_library(provider, str(library))
        _plugged_in.add(provider)
    except Exception as error:
        reason = " ".join(str(error).split())
        hint = f"onnxruntime {ort.__version__} and the plugin must fit together: pip install -U onnxruntime and the plugin."
        raise MissingError(f"onnxruntime cannot load the plugin {library.name}: {reason}", hint=hint) from error


def _kinds(device: Any) -> set[str]:
    """What a device is called: CPU, GPU or NPU by its hardware, or by what the plugin says of it."""
    return {device.device.type.name, *(value for key, value in device.ep_metadata.items() if key.endswith("_device"))}


def _located(value: str, folder: Path) -> str:
    """An option that names a file of the plugin, with its folder."""
    return str(folder / value) if value and (folder / value).is_file() else value


def _preload(ort: Any) -> None:
    """Load CUDA's libraries from the packages ``nvidia-*``, where they are; what it prints of others is in a later error."""
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(StringIO()):
            ort.preload_dlls()


def _install_built_in(target: Target) -> str:
    """The line that brings a provider that is built into some package of onnxruntime."""
    if target.provider in _NVIDIA and installed("onnxruntime-gpu") is not None:
        return f"another package has overwritten it: {_SWAP}pip install --force-reinstall --no-deps onnxruntime-gpu"
    line = install_line(target)
    if not line:
        return "Install the onnxruntime package that contains it."
    return f"{_SWAP}{line}{' tensorrt' if target.provider.startswith('Tensorrt') else ''}"


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what native code prints on stdout: QNN's simulator greets there, and stdout may be JSON."""
    library = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        library.fflush(None)  # what is buffered would be printed when the process ends
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
