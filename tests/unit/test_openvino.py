"""OpenVINO computes what the graph says, says what it computed in, and keeps to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import MissingToolError, StageError
from optimizer.graph.openvino_receipt import Layer, openvino_receipt, receipt_of
from optimizer.runtime.onnx_interface import read_interface
from optimizer.runtime.openvino import OpenVinoSession, compile_model, missing
from optimizer.types import TensorSpec

pytest.importorskip("openvino", reason="openvino is not installed")
RANDOM = np.random.default_rng(0)


def model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """A graph from x [batch, 16] to y [batch, 8]."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, ["batch", 16])],
        [helper.make_tensor_value_info("y", kind, ["batch", 8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def saved(made: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(made, folder / "model.onnx")
    return folder / "model.onnx"


def weights(kind: type = np.float32) -> np.ndarray:
    return RANDOM.normal(size=(16, 8)).astype(kind)


def product(**constants: np.ndarray) -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": weights(), **constants})


def quantized(symmetric: bool) -> onnx.ModelProto:
    """The CPU's dialect (uint8 with a zero point) or TensorRT's (int8 without): both with int8 weights per column."""
    zero = np.int8(0) if symmetric else np.uint8(120)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="product"),
    ]
    w = weights()
    scale = (np.abs(w).max(0) / 127).astype(np.float32)
    constants = {
        "wq": np.round(w / scale).astype(np.int8),
        "ws": scale,
        "wz": np.zeros(8, np.int8),
        "xs": np.float32(0.03),
        "xz": zero,
    }
    return model(nodes, {name: np.asarray(value) for name, value in constants.items()})


def test_float32_is_computed_in_float32(tmp_path: Path) -> None:
    made = product()
    x = RANDOM.normal(size=(64, 16)).astype(np.float32)
    w = numpy_helper.to_array(made.graph.initializer[0])
    with OpenVinoSession(saved(made, tmp_path)) as session:
        error = np.abs(session.infer({"x": x})["y"] - x @ w).max()
    # Sums of 16 products; bfloat16, OpenVINO's default where a CPU has tiles of it, is off by 1e-2.
    assert error < 1e-5
    coarse = (x.view(np.uint32) & 0xFFFF0000).view(np.float32) @ w
    assert np.abs(coarse - x @ w).max() > 1e-3


def test_properties_ask_for_the_graphs_own_arithmetic(tmp_path: Path) -> None:
    compiled = compile_model(saved(product(), tmp_path), 1)
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "dynamic"
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_more_threads_than_processors_are_refused(tmp_path: Path) -> None:
    path = saved(product(), tmp_path)
    with pytest.raises(MissingToolError, match=r"9999 threads are asked for and this process may use \d+ processor"):
        compile_model(path, 9999)


def test_fewer_threads_than_processors_that_openvino_does_not_take_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: it counted the processors when it was first used in this process, and never again."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9999)), raising=False)
    with pytest.raises(StageError, match=r"OpenVINO takes \d+ of 9999 threads"):
        compile_model(saved(product(), tmp_path), 9999)


@pytest.mark.parametrize("symmetric", [True, False])
def test_q_dq_is_executed_in_integers(symmetric: bool, tmp_path: Path) -> None:
    path = saved(quantized(symmetric), tmp_path)
    assert openvino_receipt(path).shares == {"int8": 1.0}
    from optimizer.runtime.onnx import OnnxSession

    # Between the ties: OpenVINO multiplies by 1 / 0.03, and one float32 in 100,000 falls to the other side of a tie.
    x = ((RANDOM.integers(-110, 110, (500, 16)) + RANDOM.uniform(-0.4, 0.4, (500, 16))) * 0.03).astype(np.float32)
    with OpenVinoSession(path) as session, OnnxSession(path, optimize=False) as reference:
        np.testing.assert_allclose(session.infer({"x": x})["y"], reference.infer({"x": x})["y"], atol=1e-4)


def test_integers_that_are_only_stored_are_not_called_int8(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["wq", "ws"], ["wd"]),
        helper.make_node("MatMul", ["x", "wd"], ["y"], name="product"),
    ]
    made = model(nodes, {"wq": RANDOM.integers(-127, 127, (16, 8)).astype(np.int8), "ws": np.asarray(np.float32(0.01))})
    assert openvino_receipt(saved(made, tmp_path)).shares == {"fp32": 1.0}


def test_a_product_is_found_by_the_name_of_its_bias(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["s"], name="bias"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    made = model(nodes, {"w": weights(), "b": np.ones(8, np.float32)})
    assert openvino_receipt(saved(made, tmp_path)).precisions == {"product": "fp32"}
    found = receipt_of(made, (Layer("FullyConnected", "int8", ("bias",)), Layer("Convolution", "fp32", ("other",))))
    assert found.precisions == {"product": "int8"}


def test_what_openvino_does_not_tell_is_unknown() -> None:
    found = receipt_of(product(), ())
    assert found.shares == {"unknown": 1.0}
    assert found.notes == ("OpenVINO does not tell what it made of product",)


def test_double_is_reported_as_the_float32_that_it_is_computed_in(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    path = saved(model(nodes, {"w": weights(np.float64)}, TensorProto.DOUBLE), tmp_path)
    assert openvino_receipt(path).shares == {"fp32": 1.0}


def test_integers_beyond_32_bits_are_refused(tmp_path: Path) -> None:
    made = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch"])],
    )
    path = saved(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path)
    with OpenVinoSession(path) as session:
        assert session.infer({"x": np.array([3, -4])})["y"].tolist() == [9, 16]
        for call in (session.infer, session.bind):
            with pytest.raises(
                StageError, match=r"input 'x' reaches -1099511627776, and OpenVINO computes int64 in 32"
            ):
                call({"x": np.array([-(2**40), 5])})


def test_an_operator_it_lacks_is_refused_in_one_line(tmp_path: Path) -> None:
    path = saved(model([helper.make_node("Foreign", ["x"], ["y"], domain="my.own")], {}), tmp_path)
    with pytest.raises(StageError, match=r"OpenVINO refuses the model: .*Foreign") as caught:
        OpenVinoSession(path)
    assert "\n" not in caught.value.what
    assert "src/" not in caught.value.what


def test_another_device_is_no_fallback_to_the_cpu(tmp_path: Path) -> None:
    assert missing("cpu") is None
    with pytest.raises(MissingToolError, match="OpenVINO is used on the CPU alone, not on cuda:0"):
        OpenVinoSession(saved(product(), tmp_path), device="cuda:0")


def test_telemetry_is_not_loaded_and_nothing_is_written_or_printed(tmp_path: Path) -> None:
    path = saved(product(), tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys, pathlib, numpy as np\n"
        "from optimizer.runtime.openvino import OpenVinoSession\n"
        f"session = OpenVinoSession(pathlib.Path({str(path)!r}))\n"
        "feed = {'x': np.ones((2, 16), np.float32)}\n"
        "session.infer(feed); session.bind(feed)(); session.trace(feed); session.close()\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'openvino_telemetry', 'torch', 'onnx', 'pydantic', 'click'}, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []


def test_a_dropped_bound_call_leaves_the_session_whole(tmp_path: Path) -> None:
    """OpenVINO 2026.4 corrupts the heap, and the process ends, where tensors of a request that is gone are freed."""
    path = saved(product(), tmp_path)
    code = (
        "import pathlib, numpy as np\n"
        "from optimizer.runtime.openvino import OpenVinoSession\n"
        "feed = {'x': np.ones((3, 16), np.float32)}\n"
        "for _ in range(10):\n"
        f"    with OpenVinoSession(pathlib.Path({str(path)!r})) as session:\n"
        "        for _ in range(3):\n"
        "            session.bind(feed)(); session.infer(feed)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


def test_interface_is_read_from_the_file_as_onnx_reads_it(tmp_path: Path) -> None:
    made = product()
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 8]))  # filled by an initializer
    made.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT64, [None, 3]))
    inputs, outputs = read_interface(saved(made, tmp_path))
    assert inputs == (TensorSpec("x", "float32", ("batch", 16)), TensorSpec("n", "int64", ("n_axis0", 3)))
    assert outputs == (TensorSpec("y", "float32", ("batch", 8)),)


@pytest.mark.parametrize("content", [b"", b"junk" * 20, b"\xff" * 40])
def test_what_is_no_onnx_file_has_no_interface(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(StageError, match="is no ONNX model"):
        read_interface(tmp_path / "model.onnx")


def test_a_type_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    made = product()
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    with pytest.raises(StageError, match="input 'x': has ONNX's tensor type 16, which numpy cannot hold"):
        read_interface(saved(made, tmp_path))
