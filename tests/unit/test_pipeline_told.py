"""What a measurement says of itself: reused or measured, at which sizes, of which output."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.data.samples import Sample
from optimizer.pipeline import load, measure
from optimizer.pipeline.assemble import output_notes, size_notes
from optimizer.pipeline.bench import Bench, Measured
from optimizer.progress import Progress
from optimizer.recipe.model import Measure, ShapeRange
from optimizer.results import CandidateReport, Numerics, Precision
from optimizer.store import Store
from optimizer.types import Artifact, TensorSpec

X = TensorSpec("x", "float32", ("batch", "length", 4))


class Heard(Progress):
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def step(self, name: str, outcome: str, *_: Any) -> None:
        self.lines.append((name, outcome))

    def advance(self, *_: Any) -> None: ...

    def say(self, *_: Any) -> None: ...


def bench(folder: Path, heard: Heard, asked: Measure) -> Bench:
    recipe: Any = SimpleNamespace(measure=asked, batch_axis="batch", profile={})
    samples = [Sample({"x": np.zeros((n, 4), np.float32)}, None, str(n)) for n in (7, 9, 7)]
    splits: Any = SimpleNamespace(evaluation=samples)
    return Bench(recipe, Store(folder / "store", lambda _: None), splits, heard, "d", "cpu", False, folder / "logs")


def subject() -> Any:
    artifact = Artifact("onnx", Path("nowhere"), "a" * 64, (X,), ())
    return SimpleNamespace(
        name="fp32@onnxruntime", artifact=artifact, graph=None, runtime="onnxruntime", executes=True, device="cpu"
    )


def test_every_part_of_the_load_says_whether_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load._Load, "_memory", lambda *_: {"own_bytes": 1})
    monkeypatch.setattr(load._Load, "_energy", lambda *_: {"mj_per_item": 1.0})
    heard = Heard()
    for _ in range(2):
        load.measure_load([subject()], bench(tmp_path, heard, Measure(resources=True)), Measured())
    names = ("fp32@onnxruntime/memory", "fp32@onnxruntime/energy")
    assert heard.lines == [(n, "measured") for n in names] + [(n, "reused") for n in names]


def test_a_loadgen_run_keeps_what_disturbed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer.measure import bystanders, loadgen

    monkeypatch.setattr(loadgen, "run_scenario", lambda *_, **__: SimpleNamespace(to_json=lambda: {"valid": True}))
    monkeypatch.setattr(bystanders, "sentences", lambda *_: ("others used 60%",))
    running = subject()
    running.runner = lambda _: None
    found = load._Load(running, bench(tmp_path, Heard(), Measure(scenario="offline")))._scenario(tmp_path)
    assert found == {"valid": True, "disturbed": ["others used 60%"]}


def test_latency_says_whether_it_was_measured_and_at_which_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = SimpleNamespace(to_json=dict, surroundings={}, arrays=dict)
    monkeypatch.setattr(measure, "_time", lambda *_: (session, (0,), {}))
    heard, measured = Heard(), Measured()
    for _ in range(2):
        measure._latency([subject()], bench(tmp_path, heard, Measure(batches=(1, 2))), measured)
    assert heard.lines == [("latency", "measured"), ("latency", "reused")]
    assert measured.latency is not None
    assert measure_document(measured) == {"length": [7]}


def measure_document(measured: Measured) -> Any:
    from optimizer.pipeline.bench import read_document

    assert measured.latency is not None
    return read_document(measured.latency)["sizes"]


def test_the_report_says_at_which_sizes_latency_was_timed() -> None:
    recipe: Any = SimpleNamespace(profile={"length": ShapeRange(min=32, opt=128, max=256)})
    assert size_notes(recipe, {"length": [128]}) == [
        "latency was timed at length 128 (the profile covers 32 to 256); other sizes take other times"
    ]
    assert size_notes(recipe, {}) == []


def test_the_report_says_of_which_output_sqnr_and_metrics_are() -> None:
    metrics = {"top1": SimpleNamespace(output=None), "top5": SimpleNamespace(output="level")}
    recipe: Any = SimpleNamespace(metrics=metrics, model=SimpleNamespace(outputs=["logits", "level"]))
    (said,) = output_notes(recipe, [candidate("logits", "level")])
    assert said == (
        "SQNR in the overview is of the worst of 2 outputs (logits, level); top1 reads 'logits', top5 reads 'level'"
    )
    assert output_notes(recipe, [candidate("logits")]) == []


def candidate(*outputs: str) -> CandidateReport:
    return CandidateReport(
        name="int8@onnxruntime",
        variant="int8",
        runtime="onnxruntime",
        device="cpu",
        status="measured",
        precision=Precision(requested="int8"),
        numerics={name: Numerics(max_abs=0.1, cosine=1.0, sqnr_db=40.0) for name in outputs},
    )
