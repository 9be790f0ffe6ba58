"""The report: what it says, that it is valid, and that nothing in a model's names can break out of it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graphopt.errors import UsageError
from graphopt.report import charts, to_html, to_json, to_markdown, units, write
from graphopt.report.markdown import code, text
from graphopt.report.schema import (
    ChangeRow,
    Environment,
    FigureRow,
    MetricRow,
    ModelFacts,
    OperatorTime,
    OutputDivergence,
    PassRow,
    Report,
    Timing,
    Validation,
)

EVIL = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'{{ 7 * 7 }}{% raw %}",
    "line one\nline two\ttab\x00end",
    "a | b `c` **d** [e](https://example.com) <f> @octocat #1 \\| g\\",
    "\u0443\u0437\u0435\u043b/\u5c42/\u0637\u0628\u0642\u0629\u202e\U0001f642",
    "x" * 5000,
]


def sample(changes: int = 3, **other: object) -> Report:
    """A run that went well, on a model with ``changes`` places that were changed."""
    environment = Environment(
        cpu="Intel(R) Xeon(R) Platinum 8488C",
        isa=["avx2", "avx512f", "avx512_vnni", "amx_int8"],
        cores=2,
        memory_bytes=16_640_274_432,
        os="Linux 6.1 x86_64, glibc 2.36",
        python="3.11.2",
        onnx="1.23.0",
        onnx_ir="1.1.0",
        numpy="2.4.6",
        onnxruntime="1.31.0",
    )
    before = ModelFacts(
        path="models/cifar_resnet20.onnx",
        sha256="4f" * 32,
        bytes=1_131_204,
        nodes=93,
        parameters=272_474,
        macs=41_030_000,
        opset=17,
        inputs=["input"],
        outputs=["logits"],
        operators={"Conv": 21, "BatchNormalization": 19, "Relu": 19, "Add": 9, "Gemm": 1},
    )
    after = before.model_copy(
        update={
            "path": "models/cifar_resnet20.opt.onnx",
            "sha256": "9a" * 32,
            "bytes": 1_096_310,
            "nodes": 52,
            "parameters": 269_722,
            "operators": {"Conv": 21, "Relu": 19, "Add": 9, "Gemm": 1},
        }
    )
    rows = [
        ChangeRow(
            site=f"/layer{1 + index % 4}/block{index // 4}/conv{1 + index % 2}/Conv",
            what="BatchNormalization folded into Conv" if index % 5 else "left alone",
            why="the scale and shift are constants" if index % 5 else "its result is also an output of the graph",
            done=bool(index % 5),
        )
        for index in range(changes)
    ]
    passes = [
        PassRow(
            name="simplify",
            options={"growth_bytes": 1048576, "fold": True},
            seconds=0.412,
            kept=True,
            why="outputs agree with the model before",
            nodes_before=93,
            nodes_after=52,
            bytes_before=1_131_204,
            bytes_after=1_096_310,
            changes=rows,
            figures=[
                FigureRow(title="Channels", kind="bars", series={"before": [16, 32], "after": [16, 20]}, labels=["a<b>", "c"]),
                FigureRow(title="Singular values", kind="curves", series={"conv<3>": [1.0, 0.5, 0.1]}, marks={"conv<3>": 2}),
            ],
        ),
        PassRow(
            name="float.float16",
            options={},
            seconds=1.93,
            kept=False,
            why="undone: it does not pay: slower on the target (0.71x, 0.70 to 0.73)",
            nodes_before=52,
            nodes_after=58,
            bytes_before=1_096_310,
            bytes_after=561_201,
            changes=[ChangeRow(site="graph", what="21 weights converted to float16", why="all values are in range")],
            changes_left_out=12,
        ),
    ]
    operators = [
        ("Conv", 0.802, 0.741, 21, 21),
        ("BatchNormalization", 0.214, 0.0, 19, 0),
        ("Relu", 0.093, 0.0, 19, 0),
        ("Add", 0.052, 0.051, 9, 9),
        ("GlobalAveragePool", 0.011, 0.011, 1, 1),
        ("Gemm", 0.0042, 0.0041, 1, 1),
    ]
    report = Report(
        graphopt_version="0.1.0",
        command="graphopt optimize models/cifar_resnet20.onnx --eval eval.npz --report out",
        created="2026-03-02T09:41:07+00:00",
        seed=0,
        seconds=9.731,
        cpu_seconds=11.204,
        peak_rss_bytes=412_332_032,
        recipe="lossless",
        target="cpu",
        goal="latency",
        verdict="1.28x faster and 3.1% smaller, with the same accuracy.",
        passed=True,
        exit_code=0,
        environment=environment,
        input=before,
        output=after,
        passes=passes,
        validation=Validation(
            samples=2000,
            data="eval.npz",
            generated=False,
            outputs={"logits": OutputDivergence(max_abs=1.9e-6, max_rel=1.4e-7, cosine=0.99999999993, sqnr_db=131.84)},
            metric=MetricRow(name="top1", before=0.915, after=0.915, drop=0.0),
            max_drop=None,
            passed=True,
            problems=[],
        ),
        timing=Timing(
            target="cpu",
            provider="CPUExecutionProvider",
            threads=1,
            clock="cpu",
            rounds=412,
            before_ms=1.182,
            after_ms=0.9213,
            speedup=1.283,
            speedup_low=1.271,
            speedup_high=1.294,
            wall_before_ms=1.191,
            wall_after_ms=0.9302,
            converged=True,
            verdict="faster",
            operators=[
                OperatorTime(op_type=n, before_ms=a, after_ms=b, before_count=i, after_count=j) for n, a, b, i, j in operators
            ],
        ),
        notes=["The samples were converted from float64 to float32."],
    )
    return report.model_copy(update=other)


def without(*parts: str) -> Report:
    """The sample as it is when something was switched off, not known, or failed."""
    report = sample()
    assert report.output is not None
    assert report.validation is not None
    assert report.timing is not None
    if "macs" in parts:
        report.input.macs = report.output.macs = None
    if "operators" in parts:
        report.timing.operators = []
    if "metric" in parts:
        report.validation.metric = None
    if "changes" in parts:
        report.passes = [row.model_copy(update={"changes": []}) for row in report.passes]
    if "output" in parts:
        report.passed, report.exit_code, report.verdict = False, 5, "No file was written: the metric fell too far."
    gone: dict[str, object] = {part: None for part in parts if part in {"output", "validation", "timing"}}
    gone |= {part: [] for part in parts if part in {"passes", "notes"}}
    return report.model_copy(update=gone)


def hostile(name: str) -> Report:
    """The sample with ``name`` wherever a model, a path, or an exception's text can bring in a string."""
    report = sample(
        command=f"graphopt optimize {name}",
        verdict=f"Done with {name}.",
        recipe=name,
        target=name,
        notes=[f"Note: {name}", name],
    )
    for facts in (report.input, report.output):
        assert facts is not None
        facts.path, facts.inputs, facts.outputs, facts.operators = name, [name], [name], {name: 1}
    for row in report.passes:
        row.name, row.why, row.options = name, name, {name: name}
        row.changes = [ChangeRow(site=name, what=name, why=name)]
    assert report.validation is not None
    assert report.timing is not None
    assert report.validation.metric is not None
    report.validation.outputs = {name: next(iter(report.validation.outputs.values()))}
    report.validation.data = report.validation.metric.name = report.timing.provider = report.timing.target = name
    report.validation.problems = [name]
    report.timing.operators = [OperatorTime(op_type=name, before_ms=1, after_ms=2, before_count=1, after_count=1)]
    report.environment.cpu = report.environment.os = name
    return report


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.text = ""
        self.sources = {"script": "", "style": ""}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] in self.sources:
            self.sources[self.inside[-1]] += data
        else:
            self.text += data

    def skeleton(self) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attrs)) for tag, attrs in self.elements]


def rendered(markdown: str) -> Page:
    from markdown_it import MarkdownIt

    return Page(MarkdownIt("commonmark").enable("table").render(markdown))


def addresses(page: Page) -> Iterator[str | None]:
    for _, attrs in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            if name in attrs:
                yield attrs[name]


# ------------------------------------------------------------------------------------------------------------------- JSON


def test_report_survives_json() -> None:
    report = sample()
    assert Report.model_validate_json(to_json(report)) == report
    assert json.loads(to_json(report))["schema"] == 1


def test_figures_that_are_not_finite_survive_strict_json() -> None:
    report = sample()
    assert report.validation is not None
    report.validation.outputs["equal"] = OutputDivergence(max_abs=0.0, max_rel=0.0, cosine=1.0, sqnr_db=math.inf)
    report.validation.outputs["broken"] = OutputDivergence(max_abs=math.inf, max_rel=math.nan, cosine=0.0, sqnr_db=-math.inf)
    report.passes[0].options["limit"] = math.inf

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(to_json(report), parse_constant=refuse)
    jsonschema.validate(content, schema())
    assert content["validation"]["outputs"]["equal"]["sqnr_db"] == "Infinity"
    again = Report.model_validate(content)
    assert again.validation is not None
    assert again.validation.outputs["equal"].sqnr_db == math.inf
    assert math.isnan(again.validation.outputs["broken"].max_rel)


def test_file_name_that_is_not_utf8_does_not_lose_the_report(tmp_path: Path) -> None:
    path = os.fsdecode(b"caf\xe9.onnx")
    report = sample()
    report = report.model_copy(update={"input": ModelFacts(**{**report.input.model_dump(), "path": path}), "command": "x"})
    write(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["input"]["path"] == "caf\\udce9.onnx"


def schema() -> dict[str, object]:
    path = Path(__file__).parent.parent / "docs" / "report.schema.json"
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_published_schema_is_current() -> None:
    command = [sys.executable, "-W", "error", "-m", "graphopt.report.schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    assert json.loads(printed) == schema(), "run: python -m graphopt.report.schema > docs/report.schema.json"


OPTIONAL = [
    (),
    ("output",),
    ("validation",),
    ("timing",),
    ("macs",),
    ("operators",),
    ("metric",),
    ("passes",),
    ("changes",),
    ("notes",),
    ("output", "validation", "timing", "passes", "notes", "macs"),
]


@pytest.mark.parametrize("parts", OPTIONAL, ids="+".join)
def test_report_is_complete_whatever_is_missing(parts: tuple[str, ...]) -> None:
    report = without(*parts)
    content = json.loads(to_json(report))
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(content, schema())
    for page in (Page(to_html(report)), rendered(to_markdown(report))):
        assert report.verdict in page.text
        assert report.command in page.text
        assert "None" not in page.text


def test_schema_lets_later_versions_add_fields_but_not_drop_them() -> None:
    content = json.loads(to_json(sample()))
    jsonschema.validate({**content, "added_later": 1}, schema())
    with pytest.raises(jsonschema.ValidationError, match="'input' is a required property"):
        jsonschema.validate({key: value for key, value in content.items() if key != "input"}, schema())


# --------------------------------------------------------------------------------------------------------------- Markdown


def test_markdown_says_what_came_out() -> None:
    markdown = to_markdown(sample())
    assert "**Passed.** 1.28x faster" in markdown
    assert "| File size | 1.13 MB | 1.10 MB | \u22123.1% |" in markdown
    assert "| Latency, CPU time | 1.18 ms | 0.921 ms |" in markdown
    assert "Speed-up **1.28\u00d7 (1.27 to 1.29)**" in markdown
    assert "| Metric: top1, 2,000 samples | 0.9150 | 0.9150 | same |" in markdown
    assert "| `float.float16` | **undone** |" in markdown


def test_markdown_warns_of_what_the_figures_do_not_show() -> None:
    report = sample()
    assert report.validation is not None
    assert report.timing is not None
    report.validation.generated, report.timing.converged = True, False
    assert "\u26a0\ufe0f Inputs were generated." in to_markdown(report)
    assert "Timing stopped early." in to_markdown(report)
    assert "Not compared with the original." in to_markdown(without("validation"))
    assert "Latency was not measured." in to_markdown(without("timing"))


@pytest.mark.parametrize("name", EVIL, ids=range(len(EVIL)))
def test_names_cannot_break_out_of_markdown(name: str) -> None:
    page, harmless = (rendered(to_markdown(hostile(string))).elements for string in (name, "name"))
    assert [tag for tag, _ in page] == [tag for tag, _ in harmless]


@pytest.mark.parametrize("name", EVIL[:-1], ids=range(len(EVIL) - 1))
def test_markdown_shows_names_as_they_are(name: str) -> None:
    shown = units.visible(name)
    cells = re.findall(r"<td[^>]*>(.*)</td>", _html(f"| a | b |\n| - | - |\n| {code(name)} | {text(name)} |\n"))
    assert len(cells) == 2
    assert Page(cells[0]).text == shown
    assert Page(cells[1]).text.replace("\u200b", "").split() == units.visible(" ".join(name.split())).split()


@given(st.text(max_size=60))
@example("`` ` ``")
@example("&#124; \\\\| &amp;")
def test_markdown_shows_any_name_as_it_is(name: str) -> None:
    cells = re.findall(r"<td>(.*)</td>", _html(f"| a | b |\n| - | - |\n| {code(name)} | {text(name)} |\n"))
    assert [tag for cell in cells for tag, _ in Page(cell).elements] == ["code"]
    assert Page(cells[0]).text.split() == units.visible(name).split()
    assert Page(cells[1]).text.replace("\u200b", "").split() == units.visible(" ".join(name.split())).split()


def _html(markdown: str) -> str:
    from markdown_it import MarkdownIt

    return str(MarkdownIt("commonmark").enable("table").render(markdown))


@pytest.mark.parametrize("sentence", ["# title", "- item", "1. item", "> quote", "---", "===", "+ item", "`code`"])
def test_a_note_stays_a_sentence(sentence: str) -> None:
    assert [tag for tag, _ in Page(_html(f"- {text(sentence)}\n")).elements] == ["ul", "li"]


def test_markdown_mentions_nobody() -> None:
    assert "@octocat" not in text("by @octocat, see #12")
    assert "#12" not in text("by @octocat, see #12")


def test_markdown_fits_a_comment_whatever_the_model() -> None:
    report = hostile("|" * 500)
    assert report.validation is not None
    divergence = OutputDivergence(max_abs=1e-6, max_rel=1e-7, cosine=1.0, sqnr_db=120.0)
    report.validation.outputs = {f"{'|' * 500}{index}": divergence for index in range(500)}
    report.validation.problems = ["|" * 500] * 100
    report.notes = ["|" * 500] * 100
    report.passes = report.passes * 40
    assert len(to_markdown(report)) < 65_536


def test_code_fence_is_longer_than_any_in_the_command() -> None:
    page = rendered(to_markdown(sample(command="graphopt '```' <b>")))
    assert page.text.rstrip().endswith("graphopt '```' <b>")


# ------------------------------------------------------------------------------------------------------------------- HTML


@pytest.mark.parametrize("name", EVIL, ids=range(len(EVIL)))
def test_names_cannot_break_out_of_html(name: str) -> None:
    page, harmless = Page(to_html(hostile(name))), Page(to_html(hostile("name")))
    assert page.skeleton() == harmless.skeleton()
    assert page.sources == harmless.sources, "no string from the model is in the script or in the style sheet"
    assert units.visible(name) in page.text


def test_html_asks_nothing_of_the_network() -> None:
    html = to_html(hostile("https://example.com/a.png"))
    page = Page(html)
    assert {address for address in addresses(page) if not (address or "").startswith("#")} == {"data:,"}
    assert not re.search(r"url\(|@import|@font-face|fetch|XMLHttp|import\(", page.sources["style"] + page.sources["script"])
    policy = next(attrs["content"] for tag, attrs in page.elements if tag == "meta" and attrs.get("http-equiv")) or ""
    assert policy.startswith("default-src 'none'")
    for kind, source in page.sources.items():
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not [attrs for _, attrs in page.elements if "style" in attrs or any(name.startswith("on") for name in attrs)]


def test_html_links_lead_somewhere() -> None:
    for parts in OPTIONAL:
        page = Page(to_html(without(*parts)))
        ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
        assert len(ids) == len(set(ids))
        wanted = {attrs[key] for _, attrs in page.elements for key in ("aria-labelledby",) if key in attrs}
        wanted |= {(address or "")[1:] for address in addresses(page) if (address or "").startswith("#")}
        assert wanted <= set(ids)


def test_html_says_pass_or_fail_in_words_and_lists_the_problems() -> None:
    assert "Passed" in Page(to_html(sample())).text
    report = without("output")
    assert report.validation is not None
    report.validation.problems = ["logits: the metric fell by 0.3"]
    page = Page(to_html(report))
    assert "Failed" in page.text
    assert "logits: the metric fell by 0.3" in page.text
    assert "Candidate" in page.text


def test_html_shows_rounded_figures_with_their_exact_value() -> None:
    page = to_html(sample())
    for exact, rounded in (("1,131,204 bytes", "1.13 MB"), ("41,030,000", "41.0 M"), ("1.182 ms", "1.18 ms")):
        assert f'<span title="{exact}">{rounded}</span>' in page


def test_html_warns_of_what_the_figures_do_not_show() -> None:
    assert "Not compared with the original, latency was not measured" in Page(to_html(without("validation", "timing"))).text
    report = sample()
    assert report.validation is not None
    report.validation.generated = True
    assert "not how accurate they are" in Page(to_html(report)).text


def test_html_draws_what_a_pass_hands_over() -> None:
    page = to_html(sample())
    assert page.count('<polyline class="curve"') == 1
    assert "Singular values" in page
    assert "2 of 3" in page
    assert "conv&lt;3&gt;" in page
    assert "a&lt;b&gt;" in page
    assert "32 → 20" in page


def test_what_an_undone_pass_had_done_is_listed_as_undone() -> None:
    rows = [attrs for tag, attrs in Page(to_html(sample(6))).elements if tag == "tr" and "data-state" in attrs]
    assert [row["data-state"] for row in rows] == ["declined", "done", "done", "done", "done", "declined", "undone"]
    assert [row["data-pass"] for row in rows] == ["1"] * 6 + ["2"]


def test_html_lists_five_thousand_changes_in_a_file_that_can_be_mailed() -> None:
    page = to_html(sample(5000))
    assert page.count("<tr data-state=") == 5001
    assert len(page.encode()) < 3_000_000
    assert "12 further changes are counted but not listed" in page


def test_operator_types_beyond_the_longest_are_drawn_as_one() -> None:
    report = sample()
    assert report.timing is not None
    report.timing.operators = [
        OperatorTime(op_type=f"Op{index}", before_ms=index, after_ms=index / 2, before_count=1, after_count=1)
        for index in range(40)
    ]
    chart = next(svg for svg in re.findall(r"<svg class=.*?</svg>", to_html(report)) if "Op39" in svg)
    labels = [element.text for element in ElementTree.fromstring(chart).iter("text")][::2]
    assert labels == [f"Op{index}" for index in range(39, 27, -1)] + ["28 other types"]


# ------------------------------------------------------------------------------------------------------- charts and units


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", EVIL[:-1], ids=range(len(EVIL) - 1))
def test_charts_are_well_formed_and_stay_within_their_width(value: float, name: str) -> None:
    drawings = [
        charts.bars([charts.Bar(name, value, name, "after", value / 2, value * 2)], label=name),
        charts.grouped([charts.Pair(name, value, 1.0, name)], label=name),
        charts.interval(value, value - 0.1, value + 0.1, text=name, reference=1.0, reference_text=name, label=name),
        charts.bars([], label=name),
        charts.curve(name, [value, 1.0], mark=1, label=name),
    ]
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        assert tree.get("role") == "img"
        assert tree.get("aria-label") == units.visible(name)
        percentages = [float(found) for found in re.findall(r'"(-?[\w.]+)%"', drawing)]
        assert all(0 <= percentage <= 100 for percentage in percentages)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (units.size(1), "1 byte"),
        (units.size(0), "0 bytes"),
        (units.size(999_950), "1.00 MB"),
        (units.size(561_201, 1_096_310), "0.561 MB"),
        (units.size(7_321_000_123), "7.32 GB"),
        (units.count(9_999), "9,999"),
        (units.count(272_474), "272 K"),
        (units.macs(41_030_000), "41.0 M"),
        (units.macs(4_100_000_000), "4.10 G"),
        (units.milliseconds(0.0421), "42.1 \u00b5s"),
        (units.milliseconds(0.9213, 1.182), "0.921 ms"),
        (units.milliseconds(1999.0), "2.00 s"),
        (units.milliseconds(0.0), "0 ms"),
        (units.milliseconds(math.inf), "\u221e"),
        (units.seconds(0.009), "9 ms"),
        (units.seconds(59.99), "1 min 0 s"),
        (units.seconds(75.2), "1 min 15 s"),
        (units.score(0.9), "0.9000"),
        (units.score(1.0), "1.000"),
        (units.score(0.0725), "0.0725"),
        (units.score(23.456), "23.46"),
        (units.seconds(3 * 3600 + 61), "3 h 1 min"),
        (units.number(-1.9e-6), "\u22121.9e\u22126"),
        (units.number(math.nan), "NaN"),
        (units.factor(0.904), "0.90\u00d7"),
        (units.factor(12.34), "12.3\u00d7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_figures_are_readable(shown: units.Shown, text: str) -> None:
    assert shown.text == text


def test_relative_change_has_a_sign() -> None:
    changes = [units.change(*pair) for pair in ((100, 75), (100, 130.4), (1, 12), (5, 5), (0, 3), (100_000, 99_999))]
    assert changes == ["\u221225.0%", "+30.4%", "+1,100%", "same", "\u2014", "same"]


# ---------------------------------------------------------------------------------------------------------------- writing


def test_write_makes_the_folder_and_replaces_whole_files(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write(sample(), folder)
    write(without("output"), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["passed"] is False


def test_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(UsageError, match="the report cannot be written"):
        write(sample(), taken)


def test_a_report_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(UsageError, match="the report cannot be written"):
        write(sample(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
