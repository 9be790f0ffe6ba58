"""What report.json holds: schema 1, the contract with everyone who reads reports by program.

Field names are fixed. Fields may be added within a schema version, so a reader ignores those that it does not know; none is
renamed or removed without a new version. Units are in the names (``_ms``, ``_bytes``, ``seconds``).

The JSON is strict: a figure that is not finite (the SQNR of equal outputs) is the string "Infinity", "-Infinity" or "NaN",
which ``float()`` in Python and ``Number()`` in JavaScript read. Null would pass for a small number in JavaScript and jq, and a
gate on the SQNR would call equal outputs bad.

``docs/report.schema.json`` is generated from this module (``python -m graphopt.report.schema``) and tested against it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

_NOT_FINITE = {"anyOf": [{"type": "number"}, {"enum": ["Infinity", "-Infinity", "NaN"]}]}
Figure = Annotated[float, WithJsonSchema(_NOT_FINITE)]
"""A measured value that need not be finite: a number, or in JSON one of the strings "Infinity", "-Infinity", "NaN"."""


def _open(schema: dict[str, Any]) -> None:
    """Let readers accept the fields that later versions add: only the producer is strict about them."""
    schema.pop("additionalProperties", None)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings", json_schema_extra=_open)

    @field_validator("*", mode="before")
    @classmethod
    def _encodable(cls, value: object) -> object:
        """Escape lone surrogates, as which a file name that is not UTF-8 reaches Python: JSON cannot hold them."""
        if isinstance(value, list):
            return [cls._encodable(item) for item in value]
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class Environment(_Part):
    """The machine and the versions that the figures were taken with."""

    cpu: str = Field(description="the processor's name")
    isa: list[str] = Field(description="instruction sets that matter for speed: avx2, avx512_vnni, amx_int8, ...")
    cores: int = Field(description="cores that the process may use")
    memory_bytes: int
    os: str
    python: str
    onnx: str
    onnx_ir: str
    numpy: str
    onnxruntime: str | None = None
    openvino: str | None = None


class ModelFacts(_Part):
    """One model file."""

    path: str
    sha256: str = Field(description="of the .onnx file alone, without its external data")
    bytes: int = Field(description="the .onnx file plus its external data")
    nodes: int = Field(description="nodes in all graphs and functions; Constant is not counted")
    parameters: int = Field(description="elements of all weights: initializers and tensors in Constant nodes")
    macs: int | None = Field(description="multiply-accumulates for one sample; null when shapes are not known")
    opset: int = Field(description="version of the default operator set")
    inputs: list[str] = Field(description="names, in the model's order")
    outputs: list[str] = Field(description="names, in the model's order")
    operators: dict[str, int] = Field(description="number of nodes by operator type, most frequent first")


class ChangeRow(_Part):
    """What a pass did at one place of the model, or why it left it alone."""

    site: str = Field(description="the place: a node, a weight, a group of channels, or the whole graph")
    what: str = Field(description="what was done")
    why: str = Field(description="why it was done, or why it was declined")
    done: bool = Field(True, description="false: the pass declined to change this place")


class SensitivityRow(_Part):
    """What one site does to the outputs when it alone is changed."""

    site: str
    op_type: str
    setting: str = Field(description="what the site was changed to")
    damage: Figure = Field(description="sum over the outputs of |a - b|^2 / |a|^2, a before and b with this site changed")
    sqnr_db: Figure = Field(description="the same in decibels: -10 log10(damage)")


class FigureRow(_Part):
    """Numbers that a pass has drawn."""

    title: str
    kind: Literal["bars", "curves"] = Field(description="bars: one of each series for each label; curves: one for each series")
    series: dict[str, list[Figure]] = Field(description="values by name; of bars the first is before and the second after")
    labels: list[str] = Field(default_factory=list, description="of bars")
    marks: dict[str, Figure] = Field(default_factory=dict, description="of curves: how many of the first values were taken")


class PassRow(_Part):
    """What became of one pass of the recipe."""

    name: str
    options: dict[str, object] = Field(description="the options that the pass ran with")
    seconds: float = Field(description="wall time, verification included")
    kept: bool = Field(description="false: the pass was undone, its changes with it")
    why: str = Field(description="why it was kept or undone")
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    changes: list[ChangeRow]
    changes_left_out: int = Field(0, description="changes beyond the first ones listed")
    sensitivity: list[SensitivityRow] = Field(
        default_factory=list, description="the sites by what each does alone, most sensitive first; empty if not measured"
    )
    figures: list[FigureRow] = Field(default_factory=list, description="what the pass has drawn")


class OutputDivergence(_Part):
    """How far one output of the candidate is from the original's, over all samples."""

    max_abs: Figure = Field(description="max |a - b|, a being the original's output and b the candidate's")
    max_rel: Figure = Field(description="max |a - b| divided by max |a|, a being the original's output")
    cosine: Figure = Field(description="cosine of the angle between a and b, each as one vector; 1 when they agree")
    sqnr_db: Figure = Field(description='10 log10(sum a^2 / sum (a - b)^2); "Infinity" when equal')


class NoiseRow(_Part):
    """How far the original's own outputs move when its inputs and weights change in the last place (``noise.py``)."""

    trials: int = Field(description="how often they were changed, at random by up to 4 units")
    outputs: dict[str, OutputDivergence] = Field(description="by name of the output: the worst of all trials")
    jumps: int | None = Field(
        description="quantizers and other jumps at which both models were taken apart: given the original's decisions there, "
        "all values agree; null where that cannot be done: then a defect that changes the outputs by less was not seen"
    )


class MetricRow(_Part):
    """The quality of both models on the same samples."""

    name: str
    before: Figure
    after: Figure
    drop: Figure = Field(description="positive is worse")


class Validation(_Part):
    """The written file against the original, on data."""

    samples: int
    data: str = Field(description="where the samples come from")
    reference: str = Field("cpu", description="target on which the original's outputs, a, were computed")
    generated: bool = Field(description="true: inputs were generated, so the metric says nothing about accuracy")
    outputs: dict[str, OutputDivergence] = Field(description="by name of the output")
    noise: NoiseRow | None = Field(
        None,
        description="what had to be known to tell the differences from a defect; null where outputs agree within rounding",
    )
    metric: MetricRow | None
    max_drop: float | None = Field(description="how far the metric may fall, absolute; null when there is no such bound")
    passed: bool
    problems: list[str] = Field(description="why it did not pass; empty when it did")


class TargetAnswers(_Part):
    """The original on the target against the original on the reference: whether the target computes what the model says."""

    reference: str = Field(description="target whose answers count")
    samples: int
    outputs: dict[str, OutputDivergence] = Field(description="by name of the output; a is the reference's")
    agrees: bool
    problems: list[str] = Field(description="why the target's answers are wrong; empty when they agree")


class LeftBehind(_Part):
    """A node that does not run where the target wants it."""

    name: str
    op_type: str
    provider: str = Field(description="what runs it instead")


class Placement(_Part):
    """Which provider runs how many nodes, counted before providers fuse them."""

    provider: str = Field(description="the provider that the target wants")
    nodes_before: dict[str, int] = Field(description="of the original, by provider")
    nodes_after: dict[str, int] = Field(description="of the written file, or the last one that was tried")
    parts: int | None = Field(description="pieces that the provider's nodes fall into; null when not known")
    left_behind: list[LeftBehind] = Field(description="of nodes_after, those on other providers; the first 100")


class OperatorTime(_Part):
    """Time spent in all nodes of one type, in the graphs that the runtime made of both files; 0 where it has none."""

    op_type: str
    before_ms: float = Field(description="per run of the model")
    after_ms: float = Field(description="per run of the model")
    before_count: int
    after_count: int


class Timing(_Part):
    """The written file against the original, interleaved in one process."""

    target: str
    provider: str = Field(description="the execution provider that really ran the models")
    threads: int
    clock: Literal["cpu", "wall"] = Field(description="which clock before_ms and after_ms were taken with")
    rounds: int = Field(description="runs of each model that were measured")
    before_ms: float = Field(description="median of one run of the original")
    after_ms: float = Field(description="median of one run of the written file")
    speedup: Figure = Field(description="before_ms / after_ms; 95 % bootstrap interval: speedup_low to speedup_high")
    speedup_low: Figure
    speedup_high: Figure
    wall_before_ms: float
    wall_after_ms: float
    converged: bool = Field(description="the interval was narrow enough before the time limit")
    verdict: Literal["faster", "same", "slower"]
    operators: list[OperatorTime] = Field(description="empty when the runtime cannot profile nodes")


class Report(_Part):
    """The whole report.json: what came in, what was done to it, what came out, and the evidence."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this schema")
    graphopt_version: str
    command: str = Field(description="what reproduces the run")
    created: str = Field(description="UTC, ISO 8601")
    seed: int
    seconds: float = Field(description="wall time of the whole run")
    cpu_seconds: float
    peak_rss_bytes: int = Field(description="most memory that the process held at any time")
    recipe: str
    target: str
    goal: Literal["latency", "size"]
    verdict: str = Field(description="one sentence: what came out")
    passed: bool
    exit_code: int
    environment: Environment
    input: ModelFacts
    output: ModelFacts | None = Field(description="null when no file was written")
    passes: list[PassRow]
    validation: Validation | None = Field(description="null with --verify off")
    timing: Timing | None = Field(description="null with --timing off, and where the target cannot be timed")
    target_answers: TargetAnswers | None = Field(
        None, description="null when the target is the reference itself, or nothing was compared"
    )
    placement: Placement | None = Field(None, description="null when the target is the reference, or nothing was run")
    notes: list[str] = Field(description="what a reader should know: casts made, inputs generated, checks switched off")

    def __repr__(self) -> str:
        return f"<Report on {self.input.path}: {self.verdict}>"

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        from .markdown import to_markdown

        return to_markdown(self)


def json_schema() -> str:
    """Return the JSON schema (draft 2020-12) of report.json, as ``docs/report.schema.json`` holds it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema(mode="serialization")}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
