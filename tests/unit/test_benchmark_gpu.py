"""What benchmarks/gpu.py does with what it measures; that it builds is its own --dry-run."""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import time
import weakref
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
        "accepts/tensorrt_rtx/current": {"accepted": True, "computes_the_same": True},
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
        "accepts/tensorrt_rtx/current",
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


def test_one_that_fails_while_timed_leaves_the_others_their_numbers(
    modules: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    gpu_measure = modules[2]

    class Breaks(Doubles):
        def bind(self, feed: Any) -> Any:
            calls = iter([None])

            def call() -> None:
                if next(calls, "over") == "over":
                    raise RuntimeError("out of memory")

            return call

    made = {gpu_measure.BASELINE: lambda: Doubles(0.0), "breaks": lambda: Breaks(0.0), "near": lambda: Doubles(0.01)}
    monkeypatch.setattr(gpu_measure, "openers", lambda *_: made)
    rows = gpu_measure.measure(tmp_path, "demo_cnn", {"image": np.ones((2, 5), np.float32)}, {}, 0.01)
    assert "out of memory" in rows["breaks"]["failed"]
    assert "latency" not in rows["breaks"]
    assert rows["breaks"]["sqnr_db"] is None  # the same answer: JSON has no infinity
    assert rows["breaks"]["max_abs"] == 0.0
    assert rows["near"]["latency"]["samples"] > 0
    assert "gpu_unwatched" in rows["surroundings"]


def test_copies_that_fail_leave_the_times(modules: Any) -> None:
    gpu_measure = modules[2]

    def lost(feed: Any) -> None:
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    opened = gpu_measure.Opened(argparse.Namespace(transfers=lost, bind=None), "logits")
    assert gpu_measure.transfers([opened], {}) == {"failed": "RuntimeError: CUDA_ERROR_ILLEGAL_ADDRESS"}


def test_a_cuda_graph_keeps_the_inputs_that_it_reads(modules: Any) -> None:
    """Their memory would else be another candidate's, and token numbers out of range end the process's GPU."""

    class Tensor:
        pass

    graph = argparse.Namespace(replay=lambda: None)
    fake = argparse.Namespace(
        backends=argparse.Namespace(cuda=argparse.Namespace(matmul=argparse.Namespace()), cudnn=argparse.Namespace()),
        inference_mode=contextlib.nullcontext,
        cuda=argparse.Namespace(
            Stream=lambda: argparse.Namespace(wait_stream=lambda other: None),
            current_stream=lambda: argparse.Namespace(wait_stream=lambda other: None),
            stream=lambda side: contextlib.nullcontext(),
            CUDAGraph=lambda: graph,
            graph=lambda made: contextlib.nullcontext(),
            synchronize=lambda: None,
        ),
    )
    candidate = object.__new__(modules[2].Torch)
    candidate.torch, candidate.tf32, candidate.how = fake, False, "graphed"
    candidate.module = candidate.called = lambda tensor: None
    given = [Tensor()]
    alive = weakref.ref(given[0])
    candidate._given = lambda feed: [given.pop()]
    call = candidate.bind({})
    gc.collect()
    call()
    assert alive() is not None


def test_a_part_that_hangs_ends_with_all_that_it_started(modules: Any, monkeypatch: Any, tmp_path: Path) -> None:
    gpu = modules[0]
    left = tmp_path / "left"
    script = tmp_path / "hangs.py"
    script.write_text(
        "import pathlib, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(left)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    asked = argparse.Namespace(json=tmp_path / "x.json", work=tmp_path, quick=True, capability="8.0", dry_run=False)
    begun = time.perf_counter()
    row = gpu.in_a_child("measure/demo_cnn/1", asked, 2.0)
    assert row["failed"] == "not finished after 2 s"
    assert time.perf_counter() - begun < 20
    stat = Path(f"/proc/{left.read_text()}/stat")
    while time.perf_counter() - begun < 20 and _lives(stat):
        time.sleep(0.05)
    assert not _lives(stat)


def _lives(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_parts_are_done_again_when_other_engines_are_accepted_or_nothing_was_timed(modules: Any) -> None:
    incomplete = modules[0]._incomplete
    found = {"tensorrt_rtx": "8.0"}
    row = {"eager_fp32": {"latency": {}}, "compiled_fp16": {"failed": "x"}, "packages": found, "quick": False}
    part = "measure/demo_cnn/1"
    assert not incomplete(part, row, found, False)
    assert not incomplete(part, row, found, True)
    assert incomplete(part, row | {"packages": {}}, found, False)
    assert incomplete(part, row | {"eager_fp32": {"failed": "no GPU"}}, found, False)
    assert incomplete(part, row | {"quick": True}, found, False)
    assert not incomplete(part, row | {"quick": True}, found, True)
    assert incomplete("build/demo_cnn", {"packages": {}}, found, False)
    assert not incomplete("build/demo_cnn", {"packages": found}, found, False)
    assert incomplete("environment", {"failed": "x"}, found, False)
    assert not incomplete("environment", {}, found, False)
