"""The script that reproduces a fault says so by its exit code, and what it needs is numpy and the runtime."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optimizer.pipeline.reproduce import Case, Way, command_line, write_script
from optimizer.stage import Tolerance

CLOSE = Tolerance("float32 in another order", atol=1e-5, rtol=1e-5)
COARSE = Tolerance("int8", min_sqnr_db=20.0, exact_integers=False)
X = np.arange(12, dtype=np.float32).reshape(3, 4) + 1


def double(folder: Path, narrow: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kind = TensorProto.FLOAT16 if narrow else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], name="add")],
        "double",
        [helper.make_tensor_value_info("x", kind, ["batch", 4])],
        [helper.make_tensor_value_info("y", kind, ["batch", 4])],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")
    return folder / "model.onnx"


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
        cwd=script.parent,
    )


def write(folder: Path, expected: np.ndarray, tolerance: Tolerance = CLOSE, way: Way = Way("onnxruntime")) -> Path:  # noqa: B008
    case = Case(double(folder / "stage"), {"x": X}, {"y": expected})
    return write_script(folder / "fault", 'it is "wrong"', {"whole": case}, way, tolerance)


def test_a_fault_that_is_there_exits_1_with_both_values(tmp_path: Path) -> None:
    expected = 2 * X
    expected[1, 2] = 0.5
    done = run(write(tmp_path, expected))
    assert done.returncode == 1, done.stderr
    assert "y[1, 2]: 14, expected 0.5" in done.stdout


def test_a_fault_that_is_gone_exits_0(tmp_path: Path) -> None:
    done = run(write(tmp_path, 2 * X + np.float32(1e-6)))
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_file_than_the_one_that_failed_exits_2(tmp_path: Path) -> None:
    script = write(tmp_path, X)
    model = script.parent / "whole" / "model.onnx"
    content = model.read_bytes()
    model.unlink()
    model.write_bytes(content + b" ")
    assert run(script).returncode == 2


@pytest.mark.parametrize(("samplewise", "code"), [(False, 0), (True, 1)])
def test_a_single_sample_can_be_wrong_where_the_batch_is_not(tmp_path: Path, samplewise: bool, code: int) -> None:
    expected = 2 * X
    expected[0] *= 1.2
    done = run(write(tmp_path, expected, COARSE, Way("onnxruntime", samplewise=samplewise)))
    assert done.returncode == code, done.stdout + done.stderr


def test_infinity_and_nan_are_wrong_where_nothing_like_them_is_expected(tmp_path: Path) -> None:
    expected = 2 * X
    expected[2, 3] = np.nan
    assert run(write(tmp_path, expected, COARSE)).returncode == 1


def test_openvino_runs_by_itself_as_well(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    script = write(tmp_path, 2 * X, way=Way("openvino"))
    assert "import optimizer" not in script.read_text()
    done = run(script)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_narrow_graph_is_stored_as_the_judge_executes_it(tmp_path: Path) -> None:
    """float16 ends at 65504: the CPU's own kernels would not say so."""
    large = np.full((1, 4), 40000, np.float16)
    case = Case(double(tmp_path / "stage", narrow=True), {"x": large}, {"y": np.full((1, 4), np.inf, np.float16)})
    way = Way("onnxruntime", optimize=False, emulated=True)
    done = run(write_script(tmp_path / "fault", "overflow", {"whole": case}, way, CLOSE))
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_to_be_typed_runs_by_the_python_that_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = write_script(
        tmp_path / "it is here",
        "a fault",
        {"whole": Case(double(tmp_path / "m"), {"x": X}, {"y": X * 2})},
        Way("onnxruntime"),
        CLOSE,
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.defpath)  # as where the environment is not activated
    words = shlex.split(command_line(script))
    assert words == [sys.executable, str(script)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_the_python_is_named_as_short_as_it_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = tmp_path / "env" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(environment / "python"))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path)
    assert command_line(Path("r.py")) == "env/bin/python r.py"
    monkeypatch.setenv("PATH", f"{environment}{os.pathsep}{os.defpath}")
    assert command_line(Path("r.py")) == "python r.py"
