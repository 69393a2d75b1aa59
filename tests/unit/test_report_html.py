"""report.html: one file that asks the network for nothing, harmless whatever the names, verdict first."""

# ruff: noqa: RUF001 (reports are typeset: minus sign, multiplication sign, en dash)

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from optimizer.report.html import render_html
from optimizer.report.read import read_report
from optimizer.results import Report

FIXTURES = Path(__file__).parent.parent / "fixtures" / "report"
SAMPLES = sorted(p.stem for p in FIXTURES.glob("*.json"))
VOID = {"meta", "br", "wbr", "link", "img", "input", "hr"}
EVIL = "<script>alert(1)</script>\"'&@onnxruntime"


def sample(name: str) -> Report:
    return read_report(FIXTURES / f"{name}.json")


def changed(name: str, **top: object) -> Report:
    return Report.model_validate_json(json.dumps({**json.loads((FIXTURES / f"{name}.json").read_text()), **top}))


class Page(HTMLParser):
    """Tags must nest; collects the text and whatever would be fetched."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.scripts = 0
        self.glued = False
        self.ids: list[str] = []
        self.labelled: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.glued = tag == "wbr"  # a place to break a word, not a space
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "srcset", "data"} and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")
            if name == "aria-labelledby":
                self.labelled += (value or "").split()
            assert not name.startswith("on"), f"{tag} has {name}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> does not match"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"script", "style"}:
            if self.glued:
                data = self.words.pop() + data
            self.words.append(data)
            self.glued = False

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def references(markup: str) -> list[str]:
    """What a browser would fetch: attributes, CSS and script."""
    return Page(markup).fetched + re.findall(r"https?://|//cdn|@import|url\(|fetch\(|XMLHttpRequest|import\(", markup)


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_fetched(name: str) -> None:
    assert references(render_html(sample(name))) == []


@pytest.mark.parametrize(
    "broken", ['<img src="x.png">', '<link href="https://fonts.example/a.css">', "<style>@import 'a'</style>"]
)
def test_a_page_that_fetches_is_noticed(broken: str) -> None:
    assert references(f"<html>{broken}</html>") != []


@pytest.mark.parametrize("name", SAMPLES)
def test_tags_nest_and_ids_are_unique(name: str) -> None:
    page = Page(render_html(sample(name)))
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labelled) <= set(page.ids)


def test_tags_that_do_not_nest_are_noticed() -> None:
    with pytest.raises(AssertionError, match="does not match"):
        Page("<div><p></div></p>")


@pytest.mark.parametrize(
    ("name", "limit"), [("demo", 80_000), ("gpu", 80_000), ("one_candidate", 40_000), ("long", 200_000)]
)
def test_the_file_is_small(name: str, limit: int) -> None:
    assert len(render_html(sample(name)).encode()) < limit


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("demo", "Ship int8@onnxruntime"),
        ("gpu", "Ship int8@tensorrt"),
        ("long", "Do not ship"),
        ("inconclusive", "Cannot decide top1 and the speedup"),
        ("one_candidate", "Measured, not judged"),
    ],
)
def test_the_verdict_stands_before_everything_else(name: str, said: str) -> None:
    markup = render_html(sample(name))
    assert re.search(r"<h1>(.*?)</h1>", markup).group(1) == said  # type: ignore[union-attr]
    assert markup.index("<h1>") < markup.index("<table")
    text = Page(markup).text
    for reason in sample(name).verdict.reasons:
        assert reason in text


def test_the_three_numbers_that_matter_carry_interval_and_unit() -> None:
    text = Page(render_html(sample("demo"))).text
    head = text[: text.index("Candidates")]
    assert "Speedup 3.11× 95 % interval 3.07× to 3.14× p50 0.221 → 0.0713 ms, batch 1" in head
    assert "Change of top1 −0.19 pp 95 % interval −0.81 to +0.44 pp 98.15 → 97.96 %, 540 samples" in head
    assert "Size 325 kB 26 % of baseline baseline 1.25 MB" in head


@pytest.mark.parametrize("name", SAMPLES)
def test_every_candidate_stage_and_reason_appears(name: str) -> None:
    report = sample(name)
    text = Page(render_html(report)).text
    for candidate in report.candidates:
        assert candidate.name in text
        assert candidate.reason is None or candidate.reason in text
    for stage in report.stages:
        assert stage.id in text
        assert stage.key is None or stage.key[:8] in text
        assert all(note in text for note in stage.notes)
    assert report.recipe.sha256 in text
    assert " ".join(report.command.split()) in text


def test_a_built_candidate_says_what_it_needs_and_by_what_it_was_judged() -> None:
    text = Page(render_html(sample("demo"))).text
    assert "executing it needs an NVIDIA RTX GPU" in text
    assert "Accuracy computed by: an emulator on the CPU that rounds the output of every operator to float16." in text
    assert "Failed: int8-minmax@tensorrt_rtx." in text


def test_a_precision_that_is_not_delivered_is_said() -> None:
    text = Page(render_html(sample("demo"))).text
    assert text.count("fp16 not delivered") == 1


def test_a_metric_that_should_be_low_is_said_to_be() -> None:
    text = Page(render_html(sample("long"))).text
    assert "word_error_rate lower is better" in text
    assert "word_error_rate may rise by at most 0.50 pp" in text
    assert "mean_iou may drop by at most 0.50 pp" in text


def test_names_are_harmless() -> None:
    source = (FIXTURES / "demo.json").read_text()
    evil = json.dumps(EVIL)[1:-1]
    source = source.replace("int8@onnxruntime", evil).replace("digits-cnn", evil).replace('"top1"', f'"{evil}"')
    source = source.replace("256 samples", evil).replace("Intel(R)", evil)
    markup = render_html(Report.model_validate_json(source))
    page = Page(markup)
    assert page.scripts == 1
    assert "<script>alert" not in markup
    assert "<script>alert(1)</script>" in page.text


def test_the_policy_allows_only_our_script() -> None:
    markup = render_html(sample("demo"))
    import base64
    import hashlib

    script = re.search(r"<script>(.*?)</script>", markup, re.S).group(1)  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in markup


def test_a_report_without_measurements_renders() -> None:
    document = json.loads((FIXTURES / "demo.json").read_text())
    failed = [c for c in document["candidates"] if c["status"] == "failed"]
    verdict = {"status": "fail", "reasons": []}
    report = changed(
        "demo", candidates=failed, stages=[], pareto=[], recommended={}, gate=None, metrics={}, verdict=verdict
    )
    text = Page(render_html(report)).text
    assert "Do not ship" in text
    assert "int32 bias is not supported" in text


def test_two_devices_get_a_recommendation_each() -> None:
    report = changed("demo", recommended={"cpu": "int8@onnxruntime", "cuda:0": "fp32@onnxruntime"})
    text = Page(render_html(report)).text
    assert "Ship int8@onnxruntime (cpu) and fp32@onnxruntime (cuda:0)" in text


def test_without_a_gate_nothing_is_said_to_be_fit_to_ship() -> None:
    text = Page(render_html(changed("demo", gate=None, verdict={"status": "pass", "reasons": []}))).text
    assert "Fastest: int8@onnxruntime" in text
    assert "The recipe sets no gate: nothing was judged." in text
    assert "Ship " not in text


def test_a_baseline_that_is_fastest_is_kept() -> None:
    assert "Keep fp32@torch" in render_html(changed("demo", recommended={"cpu": "fp32@torch"}))


def test_both_colour_schemes_and_paper_are_styled() -> None:
    markup = render_html(sample("demo"))
    assert "prefers-color-scheme: dark" in markup
    assert "@media print" in markup
