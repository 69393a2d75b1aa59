"""What benchmarks/latency.py does with what it measures: classes, rivals, costs of a call, goals."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.measure.series import LatencySession, Series

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import latency
    import latency_build as build
    import latency_candidates as candidates
    import latency_measure as measure
    import latency_overhead as overhead

    monkeypatch.setattr(sys, "path", list(sys.path))
    return SimpleNamespace(latency=latency, build=build, candidates=candidates, measure=measure, overhead=overhead)


def row(label: str, sqnr_db: float | None = 40.0) -> dict[str, Any]:
    return {"class": label, "sqnr_db": sqnr_db}


def series(p50_ms: float, seed: int = 0, openings: tuple[int, ...] = ()) -> Series:
    rng = np.random.default_rng(seed)
    return Series(p50_ms * (1 + 0.001 * rng.normal(size=(30, 10))), 5, (), openings)


KINDS = {"ours fp32": "ours", "ours int8": "ours", "bf16 peer": "peer", "int8 peer": "peer", "loose": "peer"}
JUDGED = {
    "ours fp32": row("fp32", None),
    "ours int8": row("int8", 35.0),
    "bf16 peer": row("bf16"),
    "int8 peer": row("int8", 20.0),
    "loose": row("int8+bf16", 34.0),
}


def test_no_rival_computes_in_a_lower_class(modules: Any) -> None:
    p50 = {"ours fp32": 4.0, "ours int8": 1.0, "bf16 peer": 2.0, "int8 peer": 1.1, "loose": 0.5}
    assert modules.measure.contenders(p50, KINDS, JUDGED) == ("ours int8", ["int8 peer", "bf16 peer"])


def test_a_recommended_float_candidate_meets_float_rivals_alone(modules: Any) -> None:
    p50 = {"ours fp32": 0.4, "ours int8": 1.0, "bf16 peer": 2.0, "int8 peer": 1.1, "loose": 0.5}
    assert modules.measure.contenders(p50, KINDS, JUDGED) == ("ours fp32", [])
    asked = modules.measure.contenders({**p50, "ours fp32": 4.0}, KINDS, JUDGED, 2)
    assert asked == ("ours fp32", ["bf16 peer"])


def test_what_answers_wrongly_is_neither_recommended_nor_a_rival(modules: Any) -> None:
    p50 = {"ours fp32": 4.0, "ours int8": 1.0, "int8 peer": 0.1}
    judged = {**JUDGED, "ours int8": row("int8", 9.0), "int8 peer": row("int8", 9.9)}
    assert modules.measure.contenders(p50, KINDS, judged) == ("ours fp32", [])
    assert not modules.measure.sound("int8 peer", {"int8 peer": {"failed": "RuntimeError: no kernel"}})
    assert modules.measure.sound("ours fp32", judged)


def test_the_lowest_precision_of_the_layers_names_the_class(modules: Any) -> None:
    assert modules.candidates.lowest(["fp32", "int8", "fp32"]) == "int8"
    assert modules.candidates.lowest(["fp32", "bf16"]) == "bf16"
    assert modules.candidates.lowest(["fp32", "?"]) == "?"
    assert modules.measure.rank("x", {"x": row("?")}) < min(modules.candidates.RANKS.values())


def test_sqnr_is_that_of_a_known_error_and_absent_without_one(modules: Any) -> None:
    reference = np.full((2, 10), 2.0, np.float32)
    assert modules.candidates.sqnr_db(reference, reference + np.float32(0.2)) == pytest.approx(20.0, abs=1e-3)
    assert modules.candidates.sqnr_db(reference, reference) is None


def test_a_candidate_without_its_artifact_is_left_out(modules: Any) -> None:
    every = {"module", "fp32", "fp16", "bf16", "onnxruntime uint8", "NNCF int8"}
    every |= {f"{runtime} {kind}" for runtime in ("onnxruntime", "openvino") for kind in ("int8", "int8 sums")}
    rows = modules.candidates.candidates(dict.fromkeys(every, "path"))
    names = [candidate.name for candidate in rows]
    assert len(names) == len(set(names))
    for candidate in rows:
        assert (candidate.kind == "bare") == bool(candidate.of)
        assert not candidate.of or candidate.of in names
    fewer = modules.candidates.candidates(dict.fromkeys(every - {"NNCF int8"}, "path"))
    assert {c.name for c in rows} - {c.name for c in fewer} == {"NNCF", "NNCF, default hint"}


def session(bound: float, bare: float, infer: float) -> LatencySession:
    of = {"bound": bound, "bare": bare, "infer": infer}
    made = {name: {1: series(ms, i, (10, 10, 10))} for i, (name, ms) in enumerate(of.items())}
    return LatencySession("bound", made, {1: {"complaints": []}})


def test_the_cost_of_a_call_is_in_microseconds_over_the_bare_loop(modules: Any) -> None:
    found = modules.overhead.costs(session(0.0065, 0.005, 0.016))
    assert found["over_bare_us"]["median"] == pytest.approx(1.5, abs=0.02)
    assert found["conversion_us"]["median"] == pytest.approx(9.5, abs=0.05)
    low, high = found["over_bare_us"]["openings"]
    assert 1.45 < low <= high < 1.55


@pytest.mark.parametrize(("bound", "met"), [(0.0065, True), (0.0075, False)])
def test_two_microseconds_over_the_bare_loop_are_the_limit(modules: Any, bound: float, met: bool) -> None:
    cost = modules.overhead.costs(session(bound, 0.005, 0.016))
    (goal,) = modules.latency.goals({"overhead": {"openvino": {"8 floats": cost}, "took": {}}})
    assert goal["met"] is met
    assert goal["sure"]


def compared(measure: Any, ours: float, rivals: dict[str, float]) -> dict[str, Any]:
    made = {"ours": {1: series(ours)}} | {n: {1: series(ms, i + 1)} for i, (n, ms) in enumerate(rivals.items())}
    timed = LatencySession("ours", made, {1: {}})
    return {"recommended": "ours", "against": {n: measure.judged_pair(timed, "ours", n, 1) for n in rivals}}


@pytest.mark.parametrize(("ours", "met"), [(1.03, True), (1.08, False)])
def test_the_best_rival_decides(modules: Any, ours: float, met: bool) -> None:
    part = compared(modules.measure, ours, {"slow": 3.0, "best": 1.0})
    (goal,) = modules.latency.goals({"measure/demo/batch 1/threads 1": part})
    assert goal["goal"] == "demo/batch 1/threads 1: ours / best <= 1.05"
    assert goal["value"] == pytest.approx(ours, rel=0.002)
    assert goal["met"] is met
    assert goal["sure"]


def test_a_failed_part_has_no_goal_and_one_line(modules: Any) -> None:
    part = {"failed": "RuntimeError: no", "took": {"seconds": 1.0, "load_before": (0.5, 0, 0)}}
    failed = {"measure/demo/batch 1/threads 1": part, "overhead": part}
    assert modules.latency.goals(failed) == []
    assert list(modules.latency.lines("overhead", part, {}))[1:] == ["  failed: RuntimeError: no"]


def test_a_row_that_was_not_timed_says_why(modules: Any) -> None:
    part = {"rows": {"torch fp32, bare": {"left_out": "a call takes 0.70 s"}}, "within_class": {}, "against": {}}
    (line,) = modules.latency.table(part, {})
    assert line.split() == ["torch", "fp32,", "bare", "left_out:", "a", "call", "takes", "0.70", "s"]


class Sleeper:
    """A candidate whose bound call takes as long as it says."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def bind(self, feed: Any) -> Any:
        if self.seconds < 0:
            raise RuntimeError("no kernel")
        return lambda: self.clock.pass_(self.seconds)

    clock: Any = None


class Clock:
    """Time that passes only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_bare_loops_of_long_calls_and_what_fails_are_left_out(modules: Any, monkeypatch: Any) -> None:
    import contextlib

    clock = Clock()
    monkeypatch.setattr(Sleeper, "clock", clock)
    monkeypatch.setattr(modules.measure, "time", clock)
    named = {
        name: modules.candidates.Candidate(name, kind, "fp32", lambda _path, _threads, s=seconds: Sleeper(s), "ours")
        for name, kind, seconds in (
            ("ours", "ours", 0.7),
            ("long, bare", "bare", 0.7),
            ("short, bare", "bare", 0.1),
            ("broken", "peer", -1.0),
        )
    }
    with contextlib.ExitStack() as stack:
        ready, rows = modules.measure.prepared(named, {"fp32": "path"}, 1, {}, stack)
    assert list(ready) == ["ours", "short, bare"]
    assert rows["broken"] == {"failed": "RuntimeError: no kernel"}
    assert list(rows["long, bare"]) == ["left_out"]


def test_the_parts_cover_every_batch_and_thread_and_build_first(modules: Any) -> None:
    parts = modules.latency.part_names(["a", "b"], [1, 16], [1, 2])
    assert parts[:4] == ["overhead", "build/a", "judge/a", "measure/a/batch 1/threads 1"]
    assert len(parts) == 1 + 2 * (2 + 4)
    assert parts.index("build/b") < parts.index("judge/b") < parts.index("measure/b/batch 1/threads 1")


def test_a_part_that_dies_is_told_with_its_last_words(modules: Any, tmp_path: Path) -> None:
    arguments = argparse.Namespace(work=tmp_path, python="", quick=True)
    (tmp_path / "part.json").write_text("{}")  # of an earlier part
    died = modules.latency.in_child("judge/absent", arguments)
    assert "manifest.json" in died["failed"]
    assert set(died["took"]) == {"seconds", "load_before", "load_after"}


def test_a_second_artifact_that_is_the_first_again_is_left_out(modules: Any, tmp_path: Path) -> None:
    made = {name: tmp_path / name for name in ("int8", "int8 sums")}
    for path in made.values():
        path.write_bytes(b"same")
    paths = {name: str(path) for name, path in made.items()}
    found = modules.build.without_repeats({"artifacts": dict(paths)}, "int8", "int8 sums")
    assert list(found["artifacts"]) == ["int8"]
    made["int8 sums"].write_bytes(b"other")
    found = modules.build.without_repeats({"artifacts": dict(paths)}, "int8", "int8 sums")
    assert list(found["artifacts"]) == ["int8", "int8 sums"]


def test_the_document_is_replaced_whole(modules: Any, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    for value in (1, 2):
        modules.build.save({"value": value}, path)
    assert json.loads(path.read_text()) == {"value": 2}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bare", ["BareOnnxRuntime", "BareOpenVino"])
def test_a_bare_loop_answers_as_written(modules: Any, tmp_path: Path, bare: str) -> None:
    pytest.importorskip("onnxruntime")
    if bare == "BareOpenVino":
        from optimizer.runtime.openvino import missing

        if missing("cpu"):
            pytest.skip(str(missing("cpu")))
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", 4]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    given = np.array([[-1, 0, 2, 3]], np.float32)
    opened = getattr(modules.candidates, bare)(tmp_path / "m.onnx", 1)
    opened.bind({"x": given})()
    np.testing.assert_array_equal(opened.infer({"x": given}), np.maximum(given, 0))
