"""Real engines built here ahead of time, without a GPU; and every refusal with its words."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import MissingToolError, StageError
from optimizer.graph.build_engine import Library, check_profile
from optimizer.graph.engine_log import layers, matters
from optimizer.stage import StageContext
from optimizer.stages.engine import EngineRtx, EngineTensorRT
from optimizer.types import Artifact, TensorSpec

RNG = np.random.default_rng(0)
BATCH = {"batch": (1, 4, 16)}


def cnn(dtype=np.float32):
    """The demo's CNN with random weights: two convolutions with pooling, two linear layers."""
    shapes = {"c1": (32, 3, 3, 3), "c2": (64, 32, 3, 3), "f1": (128, 4096), "f2": (10, 128)}
    weights = {n: (RNG.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype(dtype) for n, s in shapes.items()}
    nodes, value = [], "image"
    for name in ("c1", "c2"):
        nodes += [
            helper.make_node("Conv", [value, name], [f"{name}_y"], name=f"{name}_conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{name}_y"], [f"{name}_r"], name=f"{name}_relu"),
            helper.make_node(
                "MaxPool", [f"{name}_r"], [f"{name}_p"], name=f"{name}_pool", kernel_shape=[2, 2], strides=[2, 2]
            ),
        ]
        value = f"{name}_p"
    nodes += [
        helper.make_node("Flatten", [value], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "f1"], ["hidden"], name="fc1", transB=1),
        helper.make_node("Relu", ["hidden"], ["hidden_r"], name="fc1_relu"),
        helper.make_node("Gemm", ["hidden_r", "f2"], ["logits"], name="fc2", transB=1),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(
        nodes,
        [helper.make_tensor_value_info("image", kind, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", kind, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )


def model(nodes, inputs, outputs, initializers=(), domains=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(name, 1) for name in domains)]
    made = helper.make_model(graph, opset_imports=opsets)
    made.ir_version = 10
    return made


def unsupported():
    """Det and Unique, which TensorRT lacks, and an operator of onnxruntime's own domain."""
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="block/det"),
        helper.make_node("Relu", ["x"], ["r"], name="block/relu"),
        helper.make_node("FusedGelu", ["r"], ["f"], name="block/gelu", domain="com.microsoft"),
        helper.make_node("Unique", ["d"], ["u"], name="head/unique"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 4])]
    outputs = [helper.make_tensor_value_info("f", TensorProto.FLOAT, ["batch", 4, 4])]
    outputs.append(helper.make_tensor_value_info("u", TensorProto.FLOAT, ["n"]))
    return model(nodes, inputs, outputs, domains=["com.microsoft"])


class Bench:
    def __init__(self, folder):
        self.notes, self.log, self.out = [], folder / "engine.log", folder / "out"
        self.source = folder / "source"
        self.source.mkdir()
        self.out.mkdir()

    def build(self, stage, graph):
        onnx.save(graph, self.source / "model.onnx")
        self.artifact = Artifact("onnx", self.source, "9f2c61d0" + "0" * 56)
        context = StageContext(self.log, self.notes.append, lambda *_: None, lambda _: None)
        stage.run({"graph": self.artifact}, self.out, context)
        return json.loads((self.out / "engine.json").read_text())


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def rtx(*capabilities, profile=BATCH):
    return EngineRtx(profile=profile, compute_capabilities=capabilities)


def test_fp32_engine_for_two_capabilities_with_its_receipt(bench):
    receipt = bench.build(rtx("8.9", "8.6"), cnn())
    assert (bench.out / "engine.plan").stat().st_size > 2_000_000
    layer_rows = receipt.pop("layers")
    version = receipt.pop("version")
    assert version.startswith("1.")
    assert receipt == {
        "schema_version": 1,
        "package": "tensorrt_rtx",
        "compute_capabilities": ["8.6", "8.9"],
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 32, 32]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "profile": {"batch": {"min": 1, "opt": 4, "max": 16}},
        "onnx_sha256": bench.artifact.digest,
        "precision": {"fp32": 1.0},
        "executed": dict.fromkeys(("c1_conv", "c2_conv", "fc1", "fc2"), "fp32"),
        "precision_notes": [],
    }
    named = {name for row in layer_rows for name in row["onnx_nodes"]}
    assert {"c1_conv", "c2_conv", "fc1", "fc2"} <= named
    assert {tensor["type"] for row in layer_rows for tensor in row["inputs"]} == {"Float"}
    assert "built in" in bench.notes[-1]
    assert "Engine generation completed" in bench.log.read_text()


def test_fp16_engine_says_half_in_its_layers(bench):
    receipt = bench.build(rtx("8.6"), cnn(np.float16))
    types = {t["type"] for row in receipt["layers"] if "c2_conv" in row["onnx_nodes"] for t in row["inputs"]}
    assert types == {"Half"}
    assert receipt["precision"] == {"fp16": 1.0}


def test_no_capabilities_means_ampere_and_later(bench):
    receipt = bench.build(rtx(), cnn())
    assert receipt["compute_capabilities"][0] == "8.0"
    assert {"8.6", "8.9", "12.0"} <= set(receipt["compute_capabilities"])


def test_two_builds_are_the_same_bytes(tmp_path):
    plans = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        one = Bench(tmp_path / name)
        RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
        one.build(rtx("8.6"), cnn())
        plans.append((one.out / "engine.plan").read_bytes())
    assert plans[0] == plans[1]


def test_dynamic_axis_without_a_profile_says_what_to_add(bench):
    with pytest.raises(StageError) as caught:
        bench.build(rtx("8.6", profile={}), cnn())
    assert str(caught.value) == (
        "stage 'engine' failed on model.onnx (9f2c61d0): "
        "input 'image' has dynamic axis 'batch' and no profile covers it.\n"
        f"  Add to the recipe:  profile: {{batch: {{min: 1, opt: 8, max: 32}}}}        log: {bench.log}"
    )


def test_all_axes_without_a_profile_are_named_at_once():
    inputs = (TensorSpec("ids", "int64", ("batch", "tokens")), TensorSpec("mask", "int64", ("batch", "tokens")))
    with pytest.raises(StageError) as caught:
        check_profile(inputs, {})
    assert str(caught.value) == (
        "inputs 'ids', 'mask' have dynamic axes 'batch', 'tokens' and no profile covers them.\n"
        "  Add to the recipe:  profile: {batch: {min: 1, opt: 8, max: 32}, tokens: {min: 1, opt: 8, max: 32}}"
    )
    check_profile(inputs, {"batch": (1, 2, 3), "tokens": (1, 2, 3)})


def test_profile_of_an_axis_that_no_input_has_is_refused():
    with pytest.raises(StageError, match=r"the profile names 'height', which no input has \(dynamic axes: 'batch'\)"):
        check_profile((TensorSpec("x", "float32", ("batch", 3)),), {"batch": (1, 2, 3), "height": (1, 2, 3)})


def test_profile_out_of_order_is_refused(bench):
    with pytest.raises(StageError, match=r"the profile is refused \(batch: \(8, 4, 16\)\)"):
        bench.build(rtx("8.6", profile={"batch": (8, 4, 16)}), cnn())


def test_every_unsupported_operator_is_named(bench):
    with pytest.raises(StageError) as caught:
        bench.build(rtx("8.6"), unsupported())
    lines = str(caught.value).splitlines()
    assert "cannot parse 3 nodes:" in lines[0]
    assert lines[1:4] == [
        "  node 'block/det' (Det): operator not supported",
        "  node 'block/gelu' (FusedGelu): operator not supported (no plugin of that name either)",
        "  node 'head/unique' (Unique): operator not supported",
    ]
    assert f"log: {bench.log}" in lines[-1]
    assert not list(bench.out.iterdir())


def test_unknown_capability_lists_the_known_ones(bench):
    with pytest.raises(
        StageError, match=r"no compute capability 9\.0 \(it lists 7\.5, 8\.0, 8\.6, .*\)\n  The nearest: 8\.9"
    ):
        bench.build(rtx("8.6", "9.0"), cnn())


def test_turing_without_fp32_gemm_says_so(bench):
    with pytest.raises(StageError, match=r"FP32 GEMM is not supported[\s\S]*takes FP16 only"):
        bench.build(rtx("7.5"), cnn())


def test_missing_package_names_the_command(bench, monkeypatch):
    broken = bench.source.parent / "broken"
    broken.mkdir()
    (broken / "tensorrt_rtx.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.setattr(sys, "path", [str(broken), *sys.path])
    with pytest.raises(MissingToolError, match=r"libnvinfer\.so\.10[\s\S]*pip install tensorrt-rtx"):
        bench.build(rtx("8.6"), cnn())


def test_only_tensorrt_is_bound_to_the_device():
    assert EngineTensorRT.device_bound
    assert not EngineRtx.device_bound
    with pytest.raises(ValueError, match="compute_capabilities"):
        EngineTensorRT(profile=BATCH, compute_capabilities=("8.6",))
    sources = {"graph": "0" * 64}
    mine, theirs = (EngineTensorRT(profile=BATCH).key(sources, {"tensorrt": "11.0"}, gpu) for gpu in ("A", "B"))
    assert mine != theirs
    one, other = (rtx("8.6").key(sources, {"tensorrt_rtx": "1.7"}, gpu) for gpu in ("A", "B"))
    assert one == other


def test_only_tensorrt_10_needs_the_flag_for_strong_types():
    assert Library.of("tensorrt", "10.13.2").flag_strongly_typed
    assert not Library.of("tensorrt", "11.1.0").flag_strongly_typed
    assert not Library.of("tensorrt_rtx", "1.7.1").flag_strongly_typed


def test_engine_that_cannot_execute_says_why(bench, monkeypatch):
    monkeypatch.setattr("optimizer.runtime.tensorrt.missing", lambda package, device: f"{package} needs {device}")
    assert rtx("8.6").open_output(Artifact("engine", bench.out, "")) == "tensorrt_rtx needs cuda:0"


@pytest.mark.parametrize(("here", "opens"), [("9.0", False), ("8.6", True)])
def test_engine_for_other_gpus_is_not_opened(bench, monkeypatch, here, opens):
    gpu = SimpleNamespace(compute_capability=here, close=lambda: None)
    monkeypatch.setattr("optimizer.runtime.tensorrt.missing", lambda *_: None)
    monkeypatch.setattr("optimizer.runtime.tensorrt.TensorRTSession", lambda *_, **__: "a session")
    monkeypatch.setattr("optimizer.runtime.cuda.Cuda", lambda _: gpu)
    (bench.out / "engine.json").write_text(json.dumps({"compute_capabilities": ["8.6", "8.9"]}))
    refusal = "the engine is for compute capability 8.6, 8.9, and the GPU here has 9.0"
    assert rtx("8.6", "8.9").open_output(Artifact("engine", bench.out, "")) == ("a session" if opens else refusal)


def test_layer_table_of_an_int8_convolution_is_read():
    row = (
        "Layers:\nName: conv_myl0_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,3,8,8], Strides: [1],"
        " Datatype: Int8, Format: (NHWC) Channel major }, { Name: b, Dimensions: [1], Datatype: Float, Format: x }],"
        " Constants: [ { Name: w, Dimensions: [4,3], Datatype: Int8, Format: z }], Outputs: [ { Name: y, Dimensions:"
        " [-1,4], Datatype: Half, Format: (NHWC) }], TacticName: t, StreamId: 0, "
        "Metadata: [ONNX Layer: conv][ONNX Layer: r]"
    )
    assert layers([("VERBOSE", row)]) == [
        {
            "name": "conv_myl0_2",
            "kind": "correlation",
            "inputs": [
                {"tensor": "a", "type": "Int8", "format": "(NHWC) Channel major"},
                {"tensor": "b", "type": "Float", "format": "x"},
            ],
            "constants": [{"tensor": "w", "type": "Int8", "format": "z"}],
            "outputs": [{"tensor": "y", "type": "Half", "format": "(NHWC)"}],
            "onnx_nodes": ["conv", "r"],
        }
    ]


def test_warnings_are_kept_once_and_noise_is_not():
    lines = [("WARNING", "weights  out of\nFP16 range")] * 2 + [("INFO", "x"), ("ERROR", "cudaError 35: driver")]
    assert matters(lines) == ["weights out of FP16 range"]


@pytest.mark.parametrize(
    ("shares", "at_least", "refused"),
    [
        ({"int8": 0.95, "fp32": 0.05}, 0.5, False),
        ({"int8": 0.5, "fp32": 0.5}, 0.9, True),
        ({"int8": 0.3, "fp32": 0.7}, 0.25, False),  # the recipe accepts it
        ({"fp32": 1.0}, 0.01, True),
        ({"fp32": 1.0}, 0.0, False),  # fp32 and fp16 variants ask for no share
    ],
)
def test_an_engine_that_delivers_less_than_the_recipe_accepts_is_refused(shares, at_least, refused):
    from types import SimpleNamespace

    from optimizer.stages.engine import _check_delivered

    receipt = SimpleNamespace(shares=shares, notes=("the engine computes fc in fp32 instead of int8",))
    if not refused:
        _check_delivered(receipt, "int8", at_least, "engine")
        return
    with pytest.raises(StageError, match=r"the engine computes .*% of the multiply-accumulates in int8, at_least asks"):
        _check_delivered(receipt, "int8", at_least, "engine")
