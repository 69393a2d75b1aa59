"""What every runner promises, asked of each in RUNNERS; one that cannot execute here must say why, in a sentence."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.errors import MeasurementError, MissingToolError, OptimizerError, StageError, UsageError
from optimizer.runner import Runner
from optimizer.runners import RUNNERS
from optimizer.types import Artifact, TensorSpec

WEIGHTS = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
MODEL = """
import torch

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 3))

    def forward(self, x):
        x.mul_(1.0)  # in place, as some models do: the caller's array must not notice
        y = x @ self.weight
        return y, y.argmax(1)
"""


def checkpoint(folder: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({"weight": WEIGHTS}, folder / "checkpoint.safetensors")
    (folder / "model.py").write_text(MODEL)
    document = {
        "kind": "state_dict",
        "checkpoint": "checkpoint.safetensors",
        "factory": "model.py:Linear",
        "arguments": {},
        "key": None,
        "strip_prefix": None,
        "trust": False,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4], "keyword": False}],
        "outputs": ["y", "best"],
    }
    (folder / "module.json").write_text(json.dumps(document))
    return folder


def graph(folder: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["batch"]),
        ],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder


def engine(folder: Path, package: str) -> Path:
    """Build the graph's engine for this machine; only called where it can execute."""
    import importlib

    trt = importlib.import_module(package)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    graph(folder)
    assert parser.parse((folder / "model.onnx").read_bytes()), parser.get_error(0)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (2, 4), (4, 4))
    config.add_optimization_profile(profile)
    (folder / "engine.plan").write_bytes(bytes(builder.build_serialized_network(network, config)))
    specs = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
        "outputs": [
            {"name": "y", "dtype": "float32", "shape": ["batch", 3]},
            {"name": "best", "dtype": "int64", "shape": ["batch"]},
        ],
    }
    (folder / "engine.json").write_text(json.dumps(specs))
    return folder


def artifact(runner: type[Runner], folder: Path) -> Artifact:
    kind = runner.formats[0]
    path = (
        {"checkpoint": checkpoint, "onnx": graph}[kind](folder) if kind != "engine" else engine(folder, runner.runtime)
    )
    return Artifact(kind, path, "0" * 64)  # type: ignore[arg-type]


def usable(runner: type[Runner]) -> str:
    """Return the device to test on, or skip with the runner's own sentence."""
    device = "cuda:0" if runner.formats == ("engine",) else "cpu"
    sentence = runner.missing(device)
    if sentence:
        pytest.skip(f"{runner.runtime}: {sentence}")
    return device


every_runner = pytest.mark.parametrize("runner", RUNNERS, ids=lambda runner: runner.runtime)


@every_runner
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_runner_computes_and_leaves_its_input_alone(runner: type[Runner], batch: int, tmp_path: Path) -> None:
    device = usable(runner)
    x = np.random.default_rng(batch).normal(size=(batch, 4)).astype(np.float32)
    before = x.tobytes()
    with runner(artifact(runner, tmp_path), device=device, threads=1) as opened:
        first, second = opened.infer({"x": x}), opened.infer({"x": x})
    assert x.tobytes() == before
    # float32 sums of four products; TF32 on a GPU keeps 10 bits of each factor.
    np.testing.assert_allclose(first["y"], x @ WEIGHTS, atol=1e-5 if device == "cpu" else 5e-3)
    assert first["best"].tolist() == (x @ WEIGHTS).argmax(1).tolist()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@every_runner
def test_runner_declares_names_dtypes_and_named_axes(runner: type[Runner], tmp_path: Path) -> None:
    device = usable(runner)
    with runner(artifact(runner, tmp_path), device=device) as opened:
        assert opened.inputs == (TensorSpec("x", "float32", ("batch", 4)),)
        assert opened.outputs == (TensorSpec("y", "float32", ("batch", 3)), TensorSpec("best", "int64", ("batch",)))
        outputs = opened.infer({"x": np.zeros((2, 4), np.float32)})
        assert [(name, array.dtype.name) for name, array in outputs.items()] == [("y", "float32"), ("best", "int64")]


@every_runner
def test_bound_call_repeats_and_leaves_its_input_alone(runner: type[Runner], tmp_path: Path) -> None:
    device = usable(runner)
    x = np.ones((3, 4), np.float32)
    with runner(artifact(runner, tmp_path), device=device) as opened:
        calls = [opened.bind({"x": x}), opened.bind({"x": x[:1]})]
        for _ in range(3):
            assert [call() for call in calls] == [None, None]
        np.testing.assert_array_equal(x, 1)
        np.testing.assert_array_equal(opened.infer({"x": x})["y"], opened.infer({"x": x})["y"])


@every_runner
def test_bound_call_computes_each_time(runner: type[Runner], tmp_path: Path) -> None:
    """Its outputs are out of sight, its work is not: 4,096 rows take longer than one, each time."""
    device = usable(runner)
    if device != "cpu" or runner.formats == ("engine",):
        pytest.skip(f"{runner.runtime}: the work is not this processor's")
    rows = 4096 * 64
    with runner(artifact(runner, tmp_path), device=device, threads=1) as opened:
        few, many = opened.bind({"x": np.ones((1, 4), np.float32)}), opened.bind({"x": np.ones((rows, 4), np.float32)})
        for call in (few, many):
            call()
        spent = {call: processor_seconds(call) for call in (few, many)}
    assert spent[many] > 5 * spent[few], spent


def processor_seconds(call: Callable[[], None]) -> float:
    """The processor time of 20 calls: what others do on this machine is not in it."""
    begun = time.process_time()
    for _ in range(20):
        call()
    return time.process_time() - begun


@every_runner
def test_trace_has_an_event_that_took_time(runner: type[Runner], tmp_path: Path, capfd: Any) -> None:
    device = usable(runner)
    x = np.ones((3, 4), np.float32)
    with runner(artifact(runner, tmp_path), device=device) as opened:
        before = opened.infer({"x": x})["y"]
        capfd.readouterr()
        events = opened.trace({"x": x})
        assert capfd.readouterr() == ("", "")
        np.testing.assert_array_equal(opened.infer({"x": x})["y"], before)
    np.testing.assert_array_equal(x, 1)
    json.dumps(events)
    assert max(event["dur"] for event in events) > 0
    for event in events:
        assert event["name"]
        assert event["ph"] == "X"
        assert event["ts"] >= 0


@every_runner
def test_closed_session_is_our_bug(runner: type[Runner], tmp_path: Path) -> None:
    device = usable(runner)
    opened = runner(artifact(runner, tmp_path), device=device).open()
    for _ in range(2):
        opened.close()
    for call in (opened.infer, opened.bind, opened.trace):
        with pytest.raises(RuntimeError, match="the session is closed"):
            call({"x": np.zeros((1, 4), np.float32)})


@every_runner
def test_feed_may_be_read_only_and_need_not_be_contiguous(runner: type[Runner], tmp_path: Path) -> None:
    device = usable(runner)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32).T
    x.flags.writeable = False
    with runner(artifact(runner, tmp_path), device=device) as opened:
        for _ in range(3):  # a bound call that is dropped leaves nothing behind that the next inference needs
            opened.bind({"x": x})()
        np.testing.assert_allclose(opened.infer({"x": x})["y"], x @ WEIGHTS, atol=1e-5 if device == "cpu" else 5e-3)


@every_runner
def test_runner_outside_its_block_is_our_bug(runner: type[Runner], tmp_path: Path) -> None:
    device = usable(runner)
    opened = runner(artifact(runner, tmp_path), device=device)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="outside its 'with' block"):
            opened.infer({"x": np.zeros((1, 4), np.float32)})
        with opened:
            opened.infer({"x": np.zeros((1, 4), np.float32)})


@every_runner
def test_wrong_feed_is_a_usage_error(runner: type[Runner], tmp_path: Path) -> None:
    device = usable(runner)
    with runner(artifact(runner, tmp_path), device=device) as opened:
        for call in (opened.infer, opened.bind):
            with pytest.raises(UsageError, match=r"no input 'x'; unknown input 'z'\n  it takes x: float32\[batch, 4\]"):
                call({"z": np.zeros((1, 4), np.float32)})


@every_runner
@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:99"])
def test_missing_is_a_sentence_or_nothing(runner: type[Runner], device: str) -> None:
    sentence = runner.missing(device)
    assert sentence is None or (len(sentence.split()) > 3 and "\n" not in sentence)
    assert runner.missing("cuda:99"), "no machine has a hundred GPUs"


@every_runner
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_what_is_missing_is_refused_when_opened(runner: type[Runner], device: str, tmp_path: Path) -> None:
    if runner.missing(device) is None:
        pytest.skip(f"{runner.runtime} can execute on {device} here")
    file = tmp_path / ("engine.plan" if runner.formats == ("engine",) else "model.onnx")
    file.write_bytes(b"never read")
    with pytest.raises(MissingToolError), runner(Artifact(runner.formats[0], tmp_path, "0" * 64), device=device):  # type: ignore[arg-type]
        pass


@every_runner
def test_artifact_that_is_damaged_is_refused_without_traceback(runner: type[Runner], tmp_path: Path) -> None:
    device = usable(runner)
    made = artifact(runner, tmp_path)
    for path in tmp_path.iterdir():
        if path.suffix in (".safetensors", ".onnx", ".plan"):
            path.write_bytes(b"junk" * 20)
    with pytest.raises(OptimizerError) as caught, runner(made, device=device):
        pass
    # A checkpoint that is wrong has an exit code of its own.
    assert type(caught.value) is (StageError if runner.formats == ("checkpoint",) else MeasurementError)


def test_every_runner_has_its_own_name() -> None:
    assert len({runner.runtime for runner in RUNNERS}) == len(RUNNERS)
    expected = {"torch", "torch_compile", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
    assert expected <= {runner.runtime for runner in RUNNERS}
