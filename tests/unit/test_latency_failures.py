"""A candidate that fails while being timed takes nobody with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.errors import MeasurementError, StageError
from optimizer.measure.latency import measure_latency
from optimizer.pipeline import measure as pipeline


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
