"""Simplify keeps what later stages lean on, and its tolerance tells a right simplifier from a wrong one."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxslim
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import StageError
from optimizer.graph.interface import read_interface
from optimizer.graph.slim import slim
from optimizer.stage import StageContext
from optimizer.stages.simplify import Simplify
from optimizer.types import Artifact, TensorSpec
from optimizer.verify import verify


def conv_bn_model():
    """Conv, BatchNormalization, Identity, Relu and a shape computed from constants; no node has a name."""
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(4, 3, 3, 3)), "gamma": rng.normal(size=4), "beta": rng.normal(size=4)}
    values |= {"mean": rng.normal(size=4), "var": rng.uniform(0.5, 2, size=4)}
    initializers = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items()]
    initializers += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("two", [2]), ("two_", [30]))]
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["conv", "gamma", "beta", "mean", "var"], ["norm"]),
        helper.make_node("Identity", ["norm"], ["same"]),
        helper.make_node("Relu", ["same"], ["relu"]),
        helper.make_node("Mul", ["two", "two_"], ["sixty"]),
        helper.make_node("Slice", ["relu", "zero", "sixty"], ["cut"]),
        helper.make_node("Flatten", ["cut"], ["features"]),
    ]
    nodes[0].metadata_props.add(key="namespace", value="SmallCNN/stem: Conv2d")
    initializers.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 256]),
            helper.make_tensor_value_info("relu", TensorProto.FLOAT, ["batch", 4, 8, 8]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model


class Bench:
    """Runs the stage in a folder and keeps its notes."""

    def __init__(self, folder):
        self.folder, self.notes = folder, []
        self.source = folder / "source"
        self.out = folder / "out"
        self.source.mkdir()
        self.out.mkdir()

    def run(self, model):
        onnx.save(model, self.source / "model.onnx")
        self.artifact = Artifact("onnx", self.source, "9f2c61d0" + "0" * 56)
        context = StageContext(self.folder / "simplify.log", self.notes.append, lambda *_: None, lambda _: None)
        Simplify().run({"graph": self.artifact}, self.out, context)
        return onnx.load(self.out / "model.onnx")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def feeds():
    rng = np.random.default_rng(1)
    return {b: {"image": rng.normal(size=(b, 3, 8, 8)).astype(np.float32)} for b in (1, 2, 3)}


def check(bench):
    stage = Simplify()
    output = Artifact("onnx", bench.out, "")
    with stage.open_parent({"graph": bench.artifact}) as parent, stage.open_output(output) as child:
        return verify(parent, child, feeds(), stage.tolerance, what="simplify")


def test_batch_normalization_folds_into_conv_and_constants_fold(bench):
    model = bench.run(conv_bn_model())
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Slice", "Flatten"]
    assert bench.notes == ["7 -> 4 nodes (BatchNormalization -1, Identity -1, Mul -1)"]
    onnx.checker.check_model(model, full_check=True)


def test_interface_opset_names_and_origin_survive(bench):
    model = bench.run(conv_bn_model())
    assert read_interface(bench.out / "model.onnx") == (
        (TensorSpec("image", "float32", ("batch", 3, 8, 8)),),
        (TensorSpec("features", "float32", ("batch", 256)), TensorSpec("relu", "float32", ("batch", 4, 8, 8))),
    )
    assert model.opset_import[0].version == 20
    names = [node.name for node in model.graph.node]
    assert names[0] == "stem"
    assert all(names)
    assert len(set(names)) == len(names)
    assert model.graph.node[0].metadata_props[0].value == "SmallCNN/stem: Conv2d"


def test_result_is_the_same_twice(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    model = conv_bn_model()
    one, two = Bench(first), Bench(second)
    one.run(model)
    two.run(model)
    assert (one.out / "model.onnx").read_bytes() == (two.out / "model.onnx").read_bytes()


def test_source_is_not_touched(bench):
    model = conv_bn_model()
    bench.run(model)
    assert onnx.load(bench.source / "model.onnx") == model


def test_simplified_graph_computes_the_same(bench):
    bench.run(conv_bn_model())
    assert [note.partition(":")[0] for note in check(bench)] == [
        "output 'features' at batch 1, 2, 3",
        "output 'relu' at batch 1, 2, 3",
    ]


def test_one_weight_off_by_a_thousandth_fails_the_tolerance(bench):
    model = bench.run(conv_bn_model())
    weight = next(t for t in model.graph.initializer if list(t.dims) == [4, 3, 3, 3])
    values = numpy_helper.to_array(weight).copy()
    values.flat[np.abs(values).argmax()] *= 1.001
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, bench.out / "model.onnx")
    with pytest.raises(StageError, match=r"output 'features' at batch 1 is .*; the parent's is"):
        check(bench)


def test_duplicate_node_names_become_unique(bench):
    model = conv_bn_model()
    for node in model.graph.node[1:]:
        node.name = "block"
    names = [node.name for node in bench.run(model).graph.node]
    assert len(set(names)) == len(names)


def test_changed_interface_is_refused(tmp_path, monkeypatch):
    def renames(model):
        model.graph.output[0].name = "other"
        return model

    monkeypatch.setattr(onnxslim, "slim", renames)
    onnx.save(conv_bn_model(), tmp_path / "in.onnx")
    with pytest.raises(StageError) as caught:
        slim(str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"))
    assert str(caught.value) == (
        "onnxslim changed the outputs from features float32[batch, 256]; relu float32[batch, 4, 8, 8] "
        "to other float32[batch, 256]; relu float32[batch, 4, 8, 8]"
    )


def test_invalid_result_is_refused(tmp_path, monkeypatch):
    def breaks(model):
        model.graph.node[3].input[0] = "nowhere"
        return model

    monkeypatch.setattr(onnxslim, "slim", breaks)
    onnx.save(conv_bn_model(), tmp_path / "in.onnx")
    with pytest.raises(StageError, match=r"onnxslim's result is no valid ONNX: .*nowhere"):
        slim(str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"))


def test_crash_of_the_simplifier_is_one_error_and_this_process_lives(bench, monkeypatch):
    folder = bench.folder / "crash"
    folder.mkdir()
    (folder / "onnxslim.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    with pytest.raises(StageError) as caught:
        bench.run(conv_bn_model())
    text = str(caught.value)
    assert text.startswith("stage 'simplify' failed on model.onnx (9f2c61d0): the child process crashed with SIGSEGV")
    assert f"log: {bench.folder / 'simplify.log'}" in text


def test_weights_in_external_data_are_read(bench):
    model = conv_bn_model()
    onnx.save(
        onnx.ModelProto.FromString(model.SerializeToString()),
        bench.source / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    result = slim(str(bench.source / "model.onnx"), str(bench.out / "model.onnx"))
    assert result["before"] == 7
    assert result["after"] == 4
    assert [p.name for p in Path(bench.out).iterdir()] == ["model.onnx"]
