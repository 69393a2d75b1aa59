"""What benchmarks/gpu.py does with what it measures; that it builds is its own --dry-run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu
    import gpu_build
    import gpu_measure

    monkeypatch.setattr(sys, "path", list(sys.path))
    return gpu, gpu_build, gpu_measure


class Doubles:
    """A candidate: answers 2 x, off by a constant; one that is broken does not open."""

    note = "plain"

    def __init__(self, off: float) -> None:
        self.off = off

    def infer(self, feed: Any) -> np.ndarray:
        return feed["image"] * np.float32(2.0) + np.float32(self.off)  # type: ignore[no-any-return]

    def bind(self, feed: Any) -> Any:
        return lambda: None


def broken() -> Any:
    raise RuntimeError("no such provider")


def test_one_broken_candidate_leaves_the_others_their_numbers(modules: Any, monkeypatch: Any, tmp_path: Path) -> None:
    _, _, gpu_measure = modules
    made = {gpu_measure.BASELINE: lambda: Doubles(0.0), "near": lambda: Doubles(0.01), "broken": broken}
    monkeypatch.setattr(gpu_measure, "openers", lambda *_: made)
    given = {"image": np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)}
    rows = gpu_measure.measure(tmp_path, "demo_cnn", given, {}, 0.01)
    assert rows["broken"] == {"failed": "RuntimeError: no such provider"}
    assert 20 < rows["near"]["sqnr_db"] < 60
    assert rows["near"]["latency"]["samples"] > 0
    assert rows["near"]["energy"]["mj_per_item"] is None
    assert rows["near"]["energy"]["reason"]
    assert rows["transfers"] == {"left_out": "none of our sessions opened on a GPU"}


def test_nothing_is_judged_without_its_baseline(modules: Any, monkeypatch: Any, tmp_path: Path) -> None:
    _, _, gpu_measure = modules
    monkeypatch.setattr(gpu_measure, "openers", lambda *_: {gpu_measure.BASELINE: broken, "near": lambda: Doubles(0)})
    rows = gpu_measure.measure(tmp_path, "demo_cnn", {"image": np.zeros((1, 5), np.float32)}, {}, 0.01)
    assert "nothing can be judged" in rows["near"]["failed"]
    assert "latency" not in rows["near"]


def test_sqnr_is_that_of_the_definition(modules: Any) -> None:
    sqnr_db = modules[2].sqnr_db
    reference = np.array([3.0, 4.0])
    assert sqnr_db(reference, np.array([3.3, 4.4])) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == float("inf")
    assert sqnr_db(reference, np.array([np.nan, 4.0])) is None


def test_newest_engine_that_computes_right_is_chosen(modules: Any) -> None:
    gpu = modules[0]
    parts = {
        "accepts/tensorrt_rtx/8.0": {"accepted": True, "computes_the_same": True},
        "accepts/tensorrt_rtx/8.9": {"accepted": True, "computes_the_same": True},
        "accepts/tensorrt_rtx/12.0": {"accepted": False, "why": "another GPU"},
        "accepts/tensorrt_rtx/12.1": {"accepted": True, "computes_the_same": False},
        "accepts/tensorrt": {"failed": "not installed"},
    }
    assert gpu.chosen({"parts": parts}, None) == {"tensorrt_rtx": "8.9"}
    parts["accepts/tensorrt"] = {"accepted": True, "computes_the_same": True}
    assert gpu.chosen({"parts": parts}, None) == {"tensorrt_rtx": "8.9", "tensorrt": None}


def test_parts_follow_what_is_asked_for(modules: Any, monkeypatch: Any) -> None:
    gpu = modules[0]
    monkeypatch.setattr(gpu, "_capabilities", lambda: ["8.0"])
    asked = argparse.Namespace(dry_run=False, models=("demo_cnn",), batches=(1, 8), only=("accepts", "measure"))
    assert gpu.parts(asked) == [
        "accepts/tensorrt_rtx/8.0",
        "accepts/tensorrt",
        "measure/demo_cnn/1",
        "measure/demo_cnn/8",
    ]
    dry = argparse.Namespace(dry_run=True, models=("demo_cnn",), batches=(1,), only=gpu.KINDS)
    assert gpu.parts(dry) == ["environment", "accepts/tensorrt_rtx/8.0", "build/demo_cnn"]


def test_calibration_and_judging_see_different_samples(modules: Any) -> None:
    gpu_build = modules[1]
    calibration = gpu_build.Drawn("demo_cnn", 64)
    given = gpu_build.feed("demo_cnn", 4)["image"]
    assert given.shape == (4, 3, 32, 32)
    seen = {calibration[i].inputs["image"].tobytes() for i in range(64)}
    assert not seen & {picture.tobytes() for picture in given}
    tokens = gpu_build.feed("bert_base", 2)
    assert set(tokens) == {"tokens", "mask"}
    assert (tokens["tokens"][tokens["mask"] == 0] == 0).all()
