"""Each candidate of reduced precision stands beside the fp32 one of its target, and beside no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimizer.measure.accuracy import metric_delta
from optimizer.measure.series import LatencySession, Series
from optimizer.pipeline.against_fp32 import against_fp32, fp32_of, speedups_over_fp32
from optimizer.pipeline.bench import LATENCY, OUTCOMES, Measured


def subject(name: str, device: str = "cpu") -> Any:
    variant, _, runtime = name.partition("@")
    return SimpleNamespace(name=name, precision=variant.partition("-")[0], runtime=runtime, device=device)


NAMES = ["fp32@torch", "fp32@onnxruntime", "int8@onnxruntime", "int8-minmax@onnxruntime", "int8@openvino"]
SUBJECTS = [subject(name) for name in NAMES]
MS = dict(zip(NAMES, (3.0, 1.2, 1.0, 1.2, 0.9), strict=True))


def test_of_several_targets_each_has_its_own_fp32() -> None:
    more = [*SUBJECTS, subject("fp32@openvino"), subject("fp32-again@openvino")]
    assert fp32_of(more, [s.name for s in more]) == {
        "int8@onnxruntime": "fp32@onnxruntime",
        "int8-minmax@onnxruntime": "fp32@onnxruntime",
        "int8@openvino": "fp32@openvino",
    }


def test_a_target_without_fp32_has_nothing_to_compare_with() -> None:
    assert "int8@openvino" not in fp32_of(SUBJECTS, NAMES)


def test_another_device_is_another_target() -> None:
    found = fp32_of([subject("fp32@onnxruntime", "cuda:0"), subject("int8@onnxruntime")], NAMES)
    assert found == {}


def test_what_was_not_timed_is_left_out_on_either_side() -> None:
    assert fp32_of(SUBJECTS, ["fp32@torch", "int8@onnxruntime"]) == {}
    assert fp32_of(SUBJECTS, ["fp32@torch", "fp32@onnxruntime", "int8@openvino"]) == {}


class Entry:
    """A stored measurement."""

    def __init__(self, folder: Path, file: str, arrays: Mapping[str, Any]) -> None:
        folder.mkdir()
        np.savez_compressed(folder / file, **arrays)
        self.path = folder

    def artifact(self, _: str) -> Any:
        return SimpleNamespace(path=self.path)


@pytest.fixture
def session() -> LatencySession:
    rng = np.random.default_rng(0)
    series = {name: {b: Series(MS[name] * rng.normal(1, 0.01, (40, 5)), 5) for b in (1, 16)} for name in NAMES}
    return LatencySession("fp32@torch", series)


@pytest.fixture
def measured(session: LatencySession, tmp_path: Path) -> Measured:
    rng = np.random.default_rng(1)
    outcomes = {name: {"top1": (rng.uniform(size=300) < 0.9).astype(float)} for name in NAMES}
    accuracy: Any = {name: Entry(tmp_path / name, OUTCOMES, outcomes[name]) for name in NAMES}
    latency: Any = Entry(tmp_path / "latency", LATENCY, session.arrays())
    return Measured(accuracy=accuracy, latency=latency)


def test_accuracy_is_paired_with_that_fp32_and_not_with_the_baseline(measured: Measured, tmp_path: Path) -> None:
    found = against_fp32(SUBJECTS, measured, {"candidates": {name: {"1": {}, "16": {}} for name in NAMES}})
    assert set(found) == {"int8@onnxruntime", "int8-minmax@onnxruntime"}
    with (
        np.load(tmp_path / "int8@onnxruntime" / OUTCOMES) as own,
        np.load(tmp_path / "fp32@onnxruntime" / OUTCOMES) as base,
        np.load(tmp_path / "fp32@torch" / OUTCOMES) as other,
    ):
        expected = metric_delta("top1", base["top1"], own["top1"])
        assert expected != metric_delta("top1", other["top1"], own["top1"])
    assert found["int8@onnxruntime"].accuracy_delta == {"top1": expected}


def test_a_session_stored_without_them_gives_the_same_speedups(session: LatencySession, measured: Measured) -> None:
    candidates: dict[str, Any] = {name: {"1": {}, "16": {}} for name in NAMES}
    stored = speedups_over_fp32(session.arrays(), fp32_of(SUBJECTS, NAMES), ["1", "16"])
    new = against_fp32(SUBJECTS, measured, {"candidates": candidates, "against_fp32": stored})
    assert new == against_fp32(SUBJECTS, measured, {"candidates": candidates})
    speedup = new["int8@onnxruntime"].speedup["16"]
    assert speedup.value == pytest.approx(1.2, rel=0.01)
    assert speedup.difference is not None
    assert speedup.difference.kind == "faster"


def test_what_was_stored_against_another_candidate_is_not_used(session: LatencySession, measured: Measured) -> None:
    stored = speedups_over_fp32(session.arrays(), {"int8@onnxruntime": "fp32@torch"}, ["1"])
    candidates: dict[str, Any] = {name: {"1": {}} for name in NAMES}
    found = against_fp32(SUBJECTS, measured, {"candidates": candidates, "against_fp32": stored})["int8@onnxruntime"]
    assert found.candidate == "fp32@onnxruntime"
    assert found.speedup["1"].value == pytest.approx(1.2, rel=0.01)


def test_without_a_session_there_is_nothing_to_say(measured: Measured) -> None:
    assert against_fp32(SUBJECTS, Measured(accuracy=measured.accuracy), {"candidates": {}}) == {}
