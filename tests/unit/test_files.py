"""Saving ONNX with further outputs and its weights in memory, of what was read from a file and of what was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from ml_dtypes import float8_e4m3fn
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import StageError
from optimizer.graph.files import external_files, load_without_weights, save_with_outputs
from optimizer.runtime.onnx import OnnxSession

# Large weights are given to a session; small ones, and those of a type that is not numpy's own, stand in the file.
WEIGHTS = np.arange(4 * 300, dtype=np.float32).reshape(4, 300) - 600
SMALL = np.arange(4, dtype=np.float32)
BIAS = np.linspace(1, 8, 1200).reshape(4, 300).astype(float8_e4m3fn)


def product(opset: int = 19) -> onnx.ModelProto:
    """y = Relu((x * small) @ w + b), with p before the Relu; b is kept in 8-bit floats."""
    nodes = [
        helper.make_node("Mul", ["x", "small"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["q"]),
        helper.make_node("Cast", ["b8"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["q", "b"], ["p"]),
        helper.make_node("Relu", ["p"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 300])],
        [numpy_helper.from_array(a, n) for a, n in ((WEIGHTS, "w"), (SMALL, "small"), (BIAS, "b8"))],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def stored(folder: Path, place: str) -> Path | None:
    """Store the graph with its weights inside, beside, or not at all."""
    path = folder / "stored.onnx"
    if place == "nowhere":
        return None
    beside = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save_model(product(), path, **(beside if place == "beside" else {}))
    return path


def elsewhere(folder: Path) -> Path:
    path = folder / "elsewhere" / "model.onnx"
    path.parent.mkdir()
    return path


def test_weights_of_a_branch_that_lie_beside_the_file_are_found(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(WEIGHTS, "w")
    outputs = [helper.make_tensor_value_info("b", TensorProto.FLOAT, [4, 300])]
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "branch", [], outputs, [weight])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    made = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 300])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    source = tmp_path / "stored.onnx"
    onnx.save_model(model, source, save_as_external_data=True, location="weights", size_threshold=0)
    assert external_files(source) == [tmp_path / "weights"]
    path = elsewhere(tmp_path)
    assert save_with_outputs(load_without_weights(source), [], path) == {}  # a session is given those of the graph
    with OnnxSession(path) as session:
        assert (session.infer({"c": np.array(True)})["y"] == WEIGHTS).all()


@pytest.mark.parametrize("place", ["inside", "beside", "nowhere"])
def test_tensors_become_outputs_wherever_the_weights_lie(place: str, tmp_path: Path) -> None:
    source = stored(tmp_path, place)
    model = load_without_weights(source) if source else product()
    before = (source.read_bytes(), model.SerializeToString()) if source else (b"", model.SerializeToString())
    path = elsewhere(tmp_path)
    weights = save_with_outputs(model, ["p", "x", "y"], path)  # an input and an output are there already
    assert before == (source.read_bytes() if source else b"", model.SerializeToString())
    written = onnx.load(path, load_external_data=False)
    assert [value.name for value in written.graph.output] == ["y", "p"]
    assert list(weights) == ["w"]
    assert path.stat().st_size < WEIGHTS.nbytes
    with pytest.raises(StageError, match="onnxruntime refuses the model"):
        OnnxSession(path)
    x = -np.ones((4, 4), np.float32)
    with OnnxSession(path, weights=weights) as session:
        found = session.infer({"x": x})
    expected = (x * SMALL) @ WEIGHTS + BIAS.astype(np.float32)
    np.testing.assert_allclose(np.float64(found["p"]), np.float64(expected), rtol=1e-6)
    assert (found["y"] == np.maximum(found["p"], 0)).all()
    with OnnxSession(path, weights={"w": WEIGHTS + 1}) as session:  # those it is given, and no others
        assert not np.allclose(session.infer({"x": x})["p"], found["p"])


def test_weights_that_begin_anywhere_in_their_file_are_given_aligned(tmp_path: Path) -> None:
    source = stored(tmp_path, "beside")
    assert source is not None
    data = (tmp_path / "weights").read_bytes()
    (tmp_path / "weights").write_bytes(b"." + data)
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        place["offset"] = str(int(place.get("offset", 0)) + 1)
        del tensor.external_data[:]
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
    onnx.save_model(model, source)
    weights = save_with_outputs(load_without_weights(source), [], elsewhere(tmp_path))
    assert weights["w"].flags.aligned
    assert (weights["w"] == WEIGHTS).all()


def test_weights_that_are_inputs_too_stay_in_the_file(tmp_path: Path) -> None:
    """As every weight had to be before IR 4."""
    model = product(opset=8)
    model.ir_version = 3
    del model.graph.node[2:4], model.graph.initializer[2:]
    model.graph.node[2].input[0] = "q"
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, WEIGHTS.shape))
    model.graph.input.append(helper.make_tensor_value_info("small", TensorProto.FLOAT, SMALL.shape))
    path = elsewhere(tmp_path)
    assert save_with_outputs(model, ["q"], path) == {}
    assert "w" in {tensor.name for tensor in onnx.load(path).graph.initializer}


def test_sizes_that_shapes_are_inferred_from_stay_in_the_file(tmp_path: Path) -> None:
    """onnxruntime refuses a Split whose sizes it is only given: 128 of them are as large as a weight."""
    model = product()
    del model.graph.node[:], model.graph.initializer[:], model.graph.output[:]
    parts = [f"part{i}" for i in range(200)]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 200]))
    model.graph.node.append(helper.make_node("Split", ["x", "sizes"], parts, axis=1))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(200, np.int64), "sizes"))
    model.graph.output.append(helper.make_tensor_value_info("part7", TensorProto.FLOAT, [1, 1]))
    path = elsewhere(tmp_path)
    assert save_with_outputs(model, [], path) == {}
    with OnnxSession(path) as session:
        assert session.infer({"x": np.arange(200, dtype=np.float32)[None]})["part7"] == 7


def test_a_weight_that_nothing_reads_is_no_failure(tmp_path: Path) -> None:
    model = product()
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "unread"))
    path = elsewhere(tmp_path)
    weights = save_with_outputs(model, [], path)
    with OnnxSession(path, weights=weights) as session:
        assert session.infer({"x": np.ones((4, 4), np.float32)})["y"].shape == (4, 300)


@pytest.mark.parametrize("held", ["w", "b8"])  # one that is given, one that is embedded
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_weights_that_are_not_whole_name_their_file(held: str, how: str, tmp_path: Path) -> None:
    model = product()
    source = tmp_path / "stored.onnx"
    onnx.save_model(model, source, save_as_external_data=True, location="weights", size_threshold=0)
    stored_model = onnx.load(source, load_external_data=False)
    for tensor, whole in zip(stored_model.graph.initializer, product().graph.initializer, strict=True):
        if tensor.name != held:
            tensor.CopyFrom(whole)
    onnx.save_model(stored_model, source)
    if how == "cut":
        (tmp_path / "weights").write_bytes(b"1234")
    else:
        (tmp_path / "weights").unlink()
    with pytest.raises(StageError, match=f"weight '{held}'") as told:
        save_with_outputs(load_without_weights(source), [], elsewhere(tmp_path))
    assert told.value.where == str(tmp_path / "weights")
