"""`optimize bundle --triton` on a run that was really built: the folder is moved, and serves what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.e2e.conftest import Build, run_optimize
from tests.triton_schema import parameters, read, refusals


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_a_repository_that_was_zipped_and_moved_is_whole_and_serves(built: Build, tmp_path: Path, variant: str) -> None:
    first = tmp_path / "first"
    options = ("--variant", variant, "--target", "onnxruntime", "-o", first, "--triton")
    done = run_optimize("bundle", built.run, *options, home=built.home)
    assert (done.returncode, done.stdout.strip()) == (0, str(first)), done.stderr
    assert "triton: what it does otherwise than this bundle: " in done.stderr  # there is no preprocessing
    assert "triton: rehearsed with onnxruntime" in done.stderr
    shutil.unpack_archive(shutil.make_archive(str(tmp_path / "archive"), "zip", first), tmp_path / "elsewhere")
    shutil.rmtree(first)
    checked = run_optimize("check", tmp_path / "elsewhere", home=tmp_path / "no-home")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "'logits' comes out" in checked.stdout

    model = tmp_path / "elsewhere" / "triton" / "tiny"
    config = read(model)
    assert (config.name, config.max_batch_size) == ("tiny", 8)
    opened = onnxruntime.InferenceSession(str(model / "1" / config.default_model_filename))
    assert refusals(config, opened) == []
    threads = json.loads((built.run / "report.json").read_text())["environment"]["threads"]
    assert parameters(config)["intra_op_thread_count"] == str(threads)

    given = config.model_warmup[0].inputs["image"]
    raw = np.frombuffer((model / "warmup" / given.input_data_file).read_bytes(), np.float32)
    (answer,) = opened.run(None, {"image": raw.reshape(1, *given.dims)})
    with np.load(tmp_path / "elsewhere" / "golden.npz") as golden:
        expected = golden["output/logits"][:1]
    # The same library, machine and graph: another order of sums at most.
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.abs(answer[:, ::-1] - expected).max() > 0.01


def test_an_edited_configuration_is_refused_by_check(built: Build, tmp_path: Path) -> None:
    options = ("--variant", "fp32", "--target", "onnxruntime", "-o", tmp_path / "b", "--triton")
    assert run_optimize("bundle", built.run, *options, home=built.home).returncode == 0
    config = tmp_path / "b" / "triton" / "tiny" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: 64"))
    checked = run_optimize("check", tmp_path / "b", home=built.home)
    assert checked.returncode == 4
    assert "'triton/tiny/config.pbtxt' was changed" in checked.stderr


def test_an_engine_of_tensorrt_rtx_is_refused_before_anything_is_written(built: Build, tmp_path: Path) -> None:
    options = ("--variant", "fp16", "--target", "tensorrt_rtx", "-o", tmp_path / "b")
    refused = run_optimize("bundle", built.run, *options, "--triton", home=built.home)
    assert refused.returncode == 2
    assert "cannot load a plan of TensorRT-RTX" in refused.stderr
    assert not (tmp_path / "b").exists()
    assert run_optimize("bundle", built.run, *options, home=built.home).returncode == 0
