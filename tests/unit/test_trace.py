"""Traces of the build and of one inference per runner: sound files, with everything under its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from child_runners import onnx_runner, samples
from trace_format import problems

from optimizer.errors import MeasurementError
from optimizer.report.trace import inference_trace, render_trace
from optimizer.results import Environment, RecipeRef, Report, StageReport, Verdict


def stage(name: str, seconds: float, *, reused: bool = False, key: str | None = "k", notes: Any = ()) -> StageReport:
    return StageReport(
        id=name,
        stage=name.partition("/")[2] or name,
        variant=None,
        key=key,
        reused=reused,
        seconds=seconds,
        peak_rss_bytes=7,
        output_sha256=None,
        notes=notes,
    )


def report(*stages: StageReport) -> Report:
    environment = Environment(python="3", platform="p", cpu="c", cores=1, memory_bytes=1, gpu=None, packages={})
    return Report(
        recipe=RecipeRef(name="demo", path="demo.yaml", sha256="0"),
        environment=environment,
        baseline="fp32@torch",
        candidates=(),
        stages=stages,
        pareto=(),
        recommended={},
        verdict=Verdict(status="pass"),
    )


BUILD = report(
    stage("export", 2.0),
    stage("simplify", 1.0, reused=True),
    stage("int8/quantize", 3.0, notes=("12 nodes",)),
    stage("int8/engine", 0.0, key=None),
)


def spans(text: str, phase: str) -> dict[str, dict[str, Any]]:
    return {event["name"]: event for event in json.loads(text)["traceEvents"] if event["ph"] == phase}


def test_stages_stand_where_they_ran() -> None:
    text = render_trace(BUILD, {"export": 0.5, "int8/quantize": 10.0})
    assert problems(text) == []
    built = spans(text, "X")
    assert {name: (e["ts"], e["dur"]) for name, e in built.items()} == {
        "export": (0.5e6, 2e6),
        "int8/quantize": (10e6, 3e6),
    }
    assert built["int8/quantize"]["args"]["notes"] == ["12 nodes"]
    assert built["export"]["args"]["placed"] == "started"


def test_without_starts_stages_follow_each_other_and_say_so() -> None:
    text = render_trace(BUILD)
    assert problems(text) == []
    built = spans(text, "X")
    assert [built[name]["ts"] for name in ("export", "int8/quantize")] == [0.0, 2e6]
    assert built["int8/quantize"]["args"]["placed"] == "after the stage before it"


def test_what_was_reused_or_not_run_is_a_mark_without_length() -> None:
    marks = spans(render_trace(BUILD), "i")
    assert {name: mark["args"]["became"] for name, mark in marks.items()} == {
        "simplify": "reused",
        "int8/engine": "not run",
    }


def span(name: str, ts: float, dur: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "ph": "X", "ts": ts, "dur": dur, **more}


def test_each_candidate_is_a_process_of_its_own_that_begins_at_zero() -> None:
    text = inference_trace(
        {
            "fp32@torch": [span("conv", 5e9, 10.0, cat="op", args={"shape": [1]}), span("relu", 5e9 + 12, 1.0)],
            "int8@onnxruntime": [span("inference", 3.0, 4.0)],
        }
    )
    assert problems(text) == []
    named = {e["pid"]: e["args"]["name"] for e in json.loads(text)["traceEvents"] if e["name"] == "process_name"}
    events = spans(text, "X")
    assert {named[events[n]["pid"]] for n in ("conv", "relu")} == {"fp32@torch"}
    assert named[events["inference"]["pid"]] == "int8@onnxruntime"
    assert (events["conv"]["ts"], events["relu"]["ts"], events["inference"]["ts"]) == (0.0, 12.0, 0.0)
    assert events["conv"]["args"] == {"shape": [1]}


def test_threads_are_lanes_and_nested_spans_stay_together() -> None:
    text = inference_trace(
        {"x": [span("run", 0, 10, tid=4), span("op", 2, 3, tid=4), span("copy", 1, 4, tid="stream 7")]}
    )
    assert problems(text) == []
    events = spans(text, "X")
    assert events["run"]["tid"] == events["op"]["tid"] != events["copy"]["tid"]
    names = {e["args"]["name"] for e in json.loads(text)["traceEvents"] if e["name"] == "thread_name"}
    assert names == {"thread 4", "stream 7"}


def test_overlapping_spans_get_lanes_of_their_own() -> None:
    crossing = [span("a", 0, 10), span("b", 5, 10), span("c", 11, 2)]
    text = inference_trace({"x": crossing})
    assert problems(text) == []
    events = spans(text, "X")
    assert events["a"]["tid"] == events["c"]["tid"] != events["b"]["tid"]


def test_the_check_finds_what_is_wrong() -> None:
    """The twin: what the traces above are held against does refuse a broken one."""
    named = [
        {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "p"}},
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "t"}},
    ]
    lane = {"pid": 1, "tid": 1}
    crossing = [span("a", 0, 10, **lane), span("b", 5, 10, **lane)]
    assert any("overlap" in said for said in problems(json.dumps({"traceEvents": [*named, *crossing]})))
    assert problems(json.dumps({"traceEvents": crossing[:1]})) == ["lane 1/1 has no name"]
    broken = [*named, span("a", -1, float("nan"), **lane), {"name": "i", "ph": "i", "ts": 0, **lane}]
    assert problems(json.dumps({"traceEvents": broken})) == [
        "event 2: ts -1",
        "event 2: dur nan",
        "event 3: scope of an instant",
    ]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"name": "a", "ph": "B", "ts": 0}, "event 0 of the trace is of phase 'B', not 'X'"),
        (span("a", 0, float("nan")), "event 0 of the trace has dur nan"),
        (span("a", 0, -1.0), "event 0 of the trace has dur -1.0"),
        ({"name": "a", "ph": "X", "ts": "0", "dur": 1}, "event 0 of the trace has ts '0'"),
        ({"ph": "X", "ts": 0, "dur": 1}, "event 0 of the trace has the name None"),
    ],
)
def test_an_event_that_is_none_is_refused(event: dict[str, Any], said: str) -> None:
    with pytest.raises(MeasurementError) as caught:
        inference_trace({"int8@tensorrt": [event]})
    assert caught.value.render() == (
        f"int8@tensorrt: {said}\n  A trace holds complete events: name, ph 'X', ts and dur in microseconds."
    )


def test_a_real_runners_trace_joins_in(tmp_path: Path) -> None:
    with onnx_runner(tmp_path) as runner:
        text = inference_trace({"fp32@onnxruntime": runner.trace(samples(1)[0])})
    assert problems(text) == []
    assert spans(text, "X")
