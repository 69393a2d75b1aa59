"""A candidate that fails while being measured takes nobody with it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from latency_clock import Clock, session

from optimizer.errors import MeasurementError, MissingToolError, OptimizerError, StageError
from optimizer.measure import latency
from optimizer.measure.accuracy import Evaluation
from optimizer.measure.latency import measure_latency
from optimizer.pipeline import evaluate, receipt
from optimizer.pipeline import measure as pipeline
from optimizer.pipeline.bench import Measured
from optimizer.store import Store


class Timed:
    def __init__(self, *, bind: Exception | None = None, call: Exception | None = None) -> None:
        self._bind, self._call = bind, call

    def bind(self, feed: Any) -> Any:
        if self._bind:
            raise self._bind
        return self.run

    def run(self) -> None:
        if self._call:
            raise self._call


NO_MEMORY = StageError(
    "allocating 9 bytes failed: CUDA_ERROR_OUT_OF_MEMORY", where="cuda:0", hint="use a smaller batch"
)


@pytest.mark.parametrize(
    "broken", [Timed(bind=NO_MEMORY), Timed(call=NO_MEMORY), Timed(call=RuntimeError("CUDA out of memory"))]
)
def test_the_runner_that_failed_is_named(broken: Timed) -> None:
    runners = {"base": Timed(), "other": broken}
    with pytest.raises(MeasurementError, match=r"failed at batch 4: .*(OUT_OF_MEMORY|out of memory)") as caught:
        measure_latency(
            runners, {4: {"x": np.ones(1)}}, baseline="base", seconds=0.01, progress=lambda done, total: None
        )
    assert caught.value.where == "other"


def fake(monkeypatch: pytest.MonkeyPatch, broken: str) -> list[list[str]]:
    tried: list[list[str]] = []

    def latency(subjects: Any, bench: Any, measured: Any) -> None:
        tried.append([s.name for s in subjects])
        if broken in tried[-1]:
            raise MeasurementError("failed at batch 4: no memory", where=broken)

    monkeypatch.setattr(pipeline, "measure_accuracy", lambda *_: None)
    monkeypatch.setattr(pipeline, "_latency", latency)
    monkeypatch.setattr(pipeline, "measure_load", lambda *_: None)
    return tried


SUBJECTS: Any = [SimpleNamespace(name=name, executes=True) for name in ("base", "big", "small")]


def test_the_others_are_timed_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = fake(monkeypatch, "big")
    measured = pipeline.measure(SUBJECTS, SimpleNamespace())  # type: ignore[arg-type]
    assert tried == [["base", "big", "small"], ["base", "small"]]
    assert list(measured.failures) == ["big"]


def test_without_the_baseline_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "base")
    with pytest.raises(MeasurementError, match="base: failed at batch 4"):
        pipeline.measure(SUBJECTS, SimpleNamespace())  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [NO_MEMORY, RuntimeError("CUDA out of memory")])
def test_a_timed_call_that_fails_names_its_candidate(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The first 100 calls are warm-up: two windows of 50 ms."""
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    failed_at = []

    def pace(call: int) -> float:
        if call >= 150:
            failed_at.append(call)
            raise error
        return 1.0

    with pytest.raises(MeasurementError, match=r"failed at batch 4: .*(OUT_OF_MEMORY|out of memory)") as caught:
        session(clock, base=1.0, other=pace)
    assert (caught.value.where, failed_at) == ("other", [150])


class Opened:
    """A runner on a GPU whose session is asked, after the timing, what copies take."""

    device = "cuda:0"

    def __init__(self, error: Exception | None) -> None:
        self._error = error
        self.session = self

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def transfers(self, feed: Any) -> None:
        if self._error:
            raise self._error


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in (pipeline, evaluate):
        monkeypatch.setattr(module, "conditions", lambda _: {})
        monkeypatch.setattr(module, "identity", lambda subject: {"name": subject.name})
    asked = SimpleNamespace(batches=(1,), seconds=1.0, threads=1)
    recipe = SimpleNamespace(measure=asked, batch_axis="batch", profile={}, metrics={}, evaluation_batch=2, variants={})
    progress = SimpleNamespace(step=lambda *_: None, advance=lambda *_: None)
    store = Store(tmp_path / "store", lambda _: None)
    return SimpleNamespace(
        recipe=recipe, store=store, progress=progress, remeasure=False, check_unchanged=lambda: None, splits=None
    )


def on_gpu(name: str, error: Exception | None = None) -> Any:
    artifact = SimpleNamespace(inputs=())
    return SimpleNamespace(
        name=name, executes=True, device="cpu", artifact=artifact, runner=lambda _: Opened(error), variant=name
    )


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Who was timed, in each session."""
    sessions: list[list[str]] = []

    def openings(opened: Any, *_: Any, **__: Any) -> Any:
        with opened() as runners:
            sessions.append(list(runners))
        return SimpleNamespace(to_json=dict, surroundings={}, arrays=dict)

    monkeypatch.setattr(latency, "measure_openings", openings)
    monkeypatch.setattr(latency, "pinned", lambda _: contextlib.nullcontext(()))
    monkeypatch.setattr(pipeline, "_feeds", lambda *_: {1: {}})
    monkeypatch.setattr(pipeline, "measure_accuracy", lambda *_: None)
    monkeypatch.setattr(pipeline, "measure_load", lambda *_: None)
    return sessions


def test_who_cannot_tell_of_its_execution_is_left_out(bench: Any, timed: list[list[str]]) -> None:
    measured = pipeline.measure([on_gpu("base"), on_gpu("big", NO_MEMORY), on_gpu("small")], bench)
    assert timed == [["base", "big", "small"], ["base", "small"]]
    assert measured.latency is not None
    assert [error.render() for error in measured.failures.values()] == [
        "big: failed: allocating 9 bytes failed: CUDA_ERROR_OUT_OF_MEMORY\n  use a smaller batch"
    ]


@pytest.mark.usefixtures("timed")
def test_a_baseline_that_cannot_tell_of_its_execution_ends_the_build(bench: Any) -> None:
    with pytest.raises(StageError, match="OUT_OF_MEMORY"):
        pipeline.measure([on_gpu("base", NO_MEMORY), on_gpu("small")], bench)


NOTHING_TO_READ = [StageError("receipt cannot be read"), MissingToolError("needs openvino, which is not installed")]


def evaluated(monkeypatch: pytest.MonkeyPatch, bench: Any, broken: str, error: OptimizerError) -> Measured:
    """Measure the accuracy of three candidates, the delivered precision of one of which cannot be read."""

    def delivered(subject: Any, threads: int) -> tuple[dict[str, float], str]:
        if subject.name == broken:
            raise error
        return {"int8": 1.0}, "the graph"

    def found(base: Any, missing: Any, *_: Any) -> Any:
        return {s.name: Evaluation() for s in missing}, {s.name: {"runtime": "it", "proof": []} for s in missing}

    monkeypatch.setattr(receipt, "delivered", delivered)
    monkeypatch.setattr(evaluate, "_check_labels", lambda *_: None)
    monkeypatch.setattr(evaluate, "_evaluate", found)
    artifact = SimpleNamespace(inputs=())
    subjects: Any = [
        SimpleNamespace(name=name, precision="int8", variant=name, artifact=artifact)
        for name in ("base", "big", "small")
    ]
    measured = Measured()
    evaluate.measure_accuracy(subjects, bench, measured)
    return measured


@pytest.mark.parametrize("error", NOTHING_TO_READ)
def test_a_receipt_that_cannot_be_read_fails_its_candidate_alone(
    monkeypatch: pytest.MonkeyPatch, bench: Any, error: OptimizerError
) -> None:
    measured = evaluated(monkeypatch, bench, "big", error)
    assert measured.failures == {"big": error}
    assert list(measured.accuracy) == ["base", "small"]


@pytest.mark.parametrize("error", NOTHING_TO_READ)
def test_the_receipt_of_the_baseline_is_needed(
    monkeypatch: pytest.MonkeyPatch, bench: Any, error: OptimizerError
) -> None:
    with pytest.raises(type(error), match=error.what):
        evaluated(monkeypatch, bench, "base", error)
