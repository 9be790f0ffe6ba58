"""The lines that open a session on a target with onnxruntime, in Python and C++: the README of a package."""

from __future__ import annotations

from graphopt.targets import Target


def plain_readme(target: Target, name: str) -> str:
    """How onnxruntime is asked for the target's provider, in Markdown."""
    return f"""## Python

```python
import onnxruntime as ort

{_python(target, name)}
assert session.get_providers()[0] == "{target.provider}"  # onnxruntime falls back to the CPU without a word
outputs = session.run(None, {{"...": ...}})
```

## C++

```cpp
Ort::Env env;
Ort::SessionOptions options;
{_cpp(target)}
Ort::Session session(env, "{name}", options);
```
"""


def _python(target: Target, name: str) -> str:
    options = dict(target.provider_options)
    if target.plugin is None:
        return f'session = ort.InferenceSession("{name}", providers=[("{target.provider}", {options})])'
    return "\n".join(
        [
            f"import {target.plugin}",
            "",
            f'ort.register_execution_provider_library("{target.plugin}", {target.plugin}.get_library_path())',
            f'devices = [device for device in ort.get_ep_devices() if device.ep_name == "{target.provider}"]',
            "options = ort.SessionOptions()",
            f"options.add_provider_for_devices(devices[:1], {options})",
            f'session = ort.InferenceSession("{name}", options)',
        ]
    )


def _cpp(target: Target) -> str:
    pairs = ", ".join(f'{{"{key}", "{value}"}}' for key, value in target.provider_options.items())
    if target.provider == "CPUExecutionProvider":
        return "// the CPU provider is always there"
    if target.plugin is not None:
        return "// env.RegisterExecutionProviderLibrary and options.AppendExecutionProvider_V2: as in Python"
    return f'options.AppendExecutionProvider("{target.provider.removesuffix("ExecutionProvider")}", {{{pairs}}});'
