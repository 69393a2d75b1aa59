"""The plots: right places, readable labels, valid SVG."""

# ruff: noqa: RUF001 (reports are typeset: minus sign, multiplication sign, en dash)

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from optimizer.report import bars, plot, svg
from optimizer.report.read import read_report
from optimizer.results import Report

FIXTURES = Path(__file__).parent.parent / "fixtures" / "report"
METRICS = ("mean_iou", "word_error_rate", "spearman_correlation")


def sample(name: str) -> Report:
    return read_report(FIXTURES / f"{name}.json")


def drawn(name: str, metric: str, batch: str) -> ET.Element:
    found = plot.scatter(sample(name), metric, batch)
    assert found is not None
    return ET.fromstring(found.markup)


def boxes(root: ET.Element) -> dict[str, svg.Box]:
    found = {}
    for label in root.iter("text"):
        if "label" in (label.get("class") or ""):
            x, y = float(label.get("x", "")), float(label.get("y", ""))
            found[label.text or ""] = svg.Box(x, y - 10, x + len(label.text or "") * svg.GLYPH, y + 3)
    return found


def overlaps(found: dict[str, svg.Box]) -> list[tuple[str, str]]:
    return [(a, b) for (a, p), (b, q) in itertools.combinations(found.items(), 2) if p.overlap(q) > 1]


@pytest.mark.parametrize(
    ("name", "metric", "batch"),
    [
        *(("demo", "top1", batch) for batch in ("1", "16")),
        *(("gpu", "top1", batch) for batch in ("1", "8", "64")),
        ("inconclusive", "top1", "1"),
        *(("long", metric, batch) for metric in METRICS for batch in ("1", "32")),
    ],
)
def test_labels_do_not_overlap(name: str, metric: str, batch: str) -> None:
    assert overlaps(boxes(drawn(name, metric, batch))) == []


def test_labels_that_overlap_are_noticed() -> None:
    one = svg.Box(0, 0, 50, 13)
    assert overlaps({"a": one, "b": svg.Box(40, 5, 90, 18)}) == [("a", "b")]


def test_points_in_one_place_still_get_labels_of_their_own() -> None:
    labels = svg.Labels()
    frame = svg.Box(0, 0, 900, 400)
    found = {str(k): labels.place(400, 200, "int8@tensorrt_rtx", frame)[0] for k in range(8)}
    assert overlaps(found) == []


def test_every_candidate_with_accuracy_stands_in_the_plot() -> None:
    root = drawn("demo", "top1", "1")
    assert len(root.findall("g")) == 8
    assert {"int8@onnxruntime recommended", "fp32@torch baseline", "fp16@tensorrt_rtx"} <= set(boxes(root))
    assert "built, not timed here" in {t.text for t in root.iter("text")}


def test_faster_is_left_and_better_is_up() -> None:
    root = drawn("gpu", "top1", "1")
    at = {(g.findtext("title") or "").split()[0]: g.find("circle") for g in root.findall("g")}
    fast, slow = at["int8@tensorrt"], at["fp32@torch"]
    assert fast is not None
    assert slow is not None
    assert float(fast.get("cx", "")) < float(slow.get("cx", ""))
    assert float(fast.get("cy", "")) > float(slow.get("cy", ""))


def test_the_axis_turns_logarithmic_beyond_a_factor_of_ten() -> None:
    assert "log scale" in ET.tostring(drawn("gpu", "top1", "1"), encoding="unicode")
    assert "log scale" not in ET.tostring(drawn("demo", "top1", "1"), encoding="unicode")
    assert svg.latency_axis([1.0, 9.9], 0, 100).low == 0.0
    axis = svg.latency_axis([1.0, 100.0], 0, 100)
    assert axis.at(10.0) == pytest.approx(50.0)


def test_the_front_is_a_step_that_never_runs_through_a_dominated_region() -> None:
    path = next(p for p in drawn("demo", "top1", "1").iter("path") if p.get("class") == "front").get("d", "")
    assert re.fullmatch(r"M[\d.]+ [\d.]+(H[\d.]+V[\d.]+)+", path)
    xs, ys = [float(v) for v in re.findall(r"H([\d.]+)", path)], [float(v) for v in re.findall(r"V([\d.]+)", path)]
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)


def test_the_front_of_a_metric_that_should_be_low_goes_down() -> None:
    path = next(p for p in drawn("long", "word_error_rate", "1").iter("path") if p.get("class") == "front").get("d", "")
    ys = [float(v) for v in re.findall(r"V([\d.]+)", path)]
    assert ys == sorted(ys)


def test_the_gate_stands_in_the_plot() -> None:
    words = {t.text for t in drawn("demo", "top1", "1").iter("text")}
    assert {"gate 1.10×", "gate 96.15 %"} <= words


def test_plots_are_described_for_those_who_cannot_see_them() -> None:
    root = drawn("demo", "top1", "1")
    assert root.get("role") == "img"
    assert root.findtext("title") == "top1 against p50 latency at batch 1"
    assert "int8@onnxruntime (recommended), top1 97.96 %" in (root.findtext("desc") or "")
    for drawing in (bars.percentiles(sample("demo"), "16"), bars.sizes(sample("demo"))):
        assert drawing is not None
        root = ET.fromstring(drawing)
        assert root.findtext("title")
        assert "int8@onnxruntime" in (root.findtext("desc") or "")


def test_one_candidate_makes_no_comparison() -> None:
    assert plot.scatter(sample("one_candidate"), "top1", "1") is None
    assert bars.sizes(sample("one_candidate")) is None
    assert bars.percentiles(sample("one_candidate"), "1") is not None
    assert bars.percentiles(sample("one_candidate"), "7") is None


def test_equal_values_still_make_an_axis() -> None:
    document = json.loads((FIXTURES / "demo.json").read_text())
    for candidate in document["candidates"]:
        for value in candidate["accuracy"].values():
            value.update(value=1.0, ci95=[1.0, 1.0])
    found = plot.scatter(Report.model_validate_json(json.dumps(document)), "top1", "1")
    assert found is not None
    assert "nan" not in found.markup
    assert ">101" not in found.markup


def test_ticks_are_round_and_tell_each_other_apart() -> None:
    axis = svg.Axis(90.94, 92.31, 0, 100)
    assert [axis.label(t) for t in axis.ticks()] == ["91.00", "91.25", "91.50", "91.75", "92.00", "92.25"]
    log = svg.Axis(0.15, 4.9, 0, 100, log=True)
    assert [log.label(t) for t in log.ticks()] == ["0.2", "0.3", "0.5", "0.7", "1", "2", "3"]


def test_long_names_keep_their_target() -> None:
    drawing = bars.percentiles(sample("long"), "1")
    assert drawing is not None
    labels = [t.text or "" for t in ET.fromstring(drawing).iter("text") if "label" in (t.get("class") or "")]
    assert len(labels) == len(set(labels)) == 11
    assert all(len(label) <= 30 for label in labels)
    assert sum(label.endswith("@onnxruntime") for label in labels) == 5
