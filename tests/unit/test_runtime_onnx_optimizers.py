"""onnxruntime's optimizers that crash on a graph stay away from it, and from no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.runtime import onnx_contents
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.onnx_contents import Contents, read_contents
from optimizer.runtime.onnx_optimizers import keep_arithmetic, may_cast

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
X = np.arange(64, dtype=np.float16).reshape(4, 4, 4) / 64
W = np.linspace(-1, 1, 16, dtype=np.float16).reshape(4, 4)
# A crash ends the process: it is looked for in another one.
CHILD = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"], disabled_optimizers=sys.argv[2:])
"""


class Options:
    """Stands for onnxruntime's; takes any entry."""

    def add_session_config_entry(self, name: str, value: str) -> None:
        pass


def save(path: Path, nodes: list[onnx.NodeProto], given: int, made: int, tensors: list[Any], **model: Any) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", given, [4, 4, 4])],
        [helper.make_tensor_value_info("y", made, [4, 4, 4])],
        tensors,
    )
    imports = [helper.make_opsetid("", 18), *model.pop("imports", [])]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9, **model), path)
    return path


def own_cast(path: Path) -> Path:
    """Batch and rows change places, then a Cast of the graph's own, then a product."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Cast", ["t"], ["c"], to=FLOAT),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    return save(path, nodes, HALF, FLOAT, [numpy_helper.from_array(W.astype(np.float32), "w")])


def inserted_cast(path: Path) -> Path:
    """The same in float16: onnxruntime puts the Cast there itself, once it has turned the weights into float32."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    return save(path, nodes, HALF, HALF, [numpy_helper.from_array(W, "w")])


def opens(path: Path, without: list[str]) -> int:
    command = [sys.executable, "-c", CHILD, str(path), *without]
    return subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.parametrize("write", [own_cast, inserted_cast])
def test_a_cast_between_transpose_and_product_opens_and_computes(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "m.onnx")
    assert opens(path, keep_arithmetic(Options(), path)) == 0
    with OnnxSession(path) as session:
        found = session.infer({"x": X})["y"].astype(np.float64)
    expected = X.astype(np.float64).transpose(1, 0, 2) @ W.astype(np.float64)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # one rounding to float16, of values below 4


@pytest.mark.parametrize("write", [own_cast, inserted_cast])
def test_onnxruntime_crashes_where_the_optimizer_is_left_on(tmp_path: Path, write: Any) -> None:
    code = opens(write(tmp_path / "m.onnx"), [])
    if code == 0:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} does not crash on it any more")
    assert code < 0


def test_only_graphs_with_casts_go_without_an_optimizer(tmp_path: Path) -> None:
    plain = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = [numpy_helper.from_array(W.astype(np.float32), "w")]
    assert keep_arithmetic(Options(), save(tmp_path / "a.onnx", plain, FLOAT, FLOAT, weights)) == []
    half = save(tmp_path / "b.onnx", plain, HALF, HALF, [numpy_helper.from_array(W, "w")])
    assert keep_arithmetic(Options(), half) == ["MatmulTransposeFusion"]


def test_weights_of_float16_graphs_are_cast_once(tmp_path: Path) -> None:
    """Not at every call: that made float16 up to 2.8 times as slow on a CPU as it is now."""
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        HALF,
        HALF,
        [numpy_helper.from_array(W, "w")],
    )
    with OnnxSession(path) as session:
        events = session.trace({"x": X})
    casts = [event for event in events if event.get("args", {}).get("operator") == "Cast"]
    assert len(casts) == 2  # of the input and of the output


def test_casts_are_found_wherever_they_stand(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["z"], to=FLOAT)
    inner = helper.make_graph([cast], "inner", [], [helper.make_tensor_value_info("z", FLOAT, None)])
    condition = numpy_helper.from_array(np.array(True), "c")
    branch = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    assert may_cast(read_contents(save(tmp_path / "branch.onnx", branch, FLOAT, FLOAT, [condition])))
    body = helper.make_function("own", "f", ["x"], ["z"], [cast], [helper.make_opsetid("", 18)])
    call = [helper.make_node("f", ["x"], ["y"], domain="own")]
    imports = [helper.make_opsetid("own", 1)]
    assert may_cast(
        read_contents(save(tmp_path / "function.onnx", call, FLOAT, FLOAT, [], functions=[body], imports=imports))
    )
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(W, "k"))
    assert may_cast(read_contents(save(tmp_path / "constant.onnx", [constant], FLOAT, FLOAT, [])))
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    assert may_cast(read_contents(save(tmp_path / "input.onnx", relu, HALF, HALF, [])))
    assert not may_cast(read_contents(save(tmp_path / "relu.onnx", relu, FLOAT, FLOAT, [])))


def test_a_file_is_read_once_however_many_optimizers_are_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked = []

    def counted(data: Any) -> Contents:
        walked.append(len(data))
        return walk(data)

    walk = onnx_contents._walk
    monkeypatch.setattr(onnx_contents, "_walk", counted)
    path = own_cast(tmp_path / "m.onnx")
    with OnnxSession(path):
        assert walked == [path.stat().st_size]


def test_contents_are_operators_and_types(tmp_path: Path) -> None:
    path = own_cast(tmp_path / "m.onnx")
    assert read_contents(path) == Contents(frozenset({"Transpose", "Cast", "MatMul"}), frozenset({FLOAT, HALF}))
    for content in (b"", b"no model at all", path.read_bytes()[:40]):
        (tmp_path / "broken").write_bytes(content)
        assert read_contents(tmp_path / "broken") == Contents(frozenset(), frozenset())
