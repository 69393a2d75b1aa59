"""Real engines built here ahead of time, without a GPU; and every refusal with its words."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import MissingToolError, StageError
from optimizer.graph.builder_options import Library
from optimizer.graph.engine_log import matters, table
from optimizer.graph.optimization_profiles import check_profile
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
    assert receipt.pop("compute_capability_receipts") == {"8.6": {"fp32": 1.0}, "8.9": {"fp32": 1.0}}
    assert receipt.pop("reformats")["layers"] == 2
    assert receipt == {
        "schema_version": 1,
        "package": "tensorrt_rtx",
        "compute_capabilities": ["8.6", "8.9"],
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 32, 32]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "profile": {"batch": {"min": 1, "opt": 4, "max": 16}},
        "profiles": [{"batch": {"min": 1, "opt": 4, "max": 16}}],
        "options": {
            "workspace": 64 << 30,  # the library's own where it sees no GPU
            "tf32": True,
            "weight_streaming": False,
            "strip_plan": False,
            "refit": False,
        },
        "options_given": {},
        "retry": None,
        "timing_cache": None,
        "trtexec": "tensorrt_rtx --onnx=model.onnx --saveEngine=engine.plan --minShapes=image:1x3x32x32 "
        "--optShapes=image:4x3x32x32 --maxShapes=image:16x3x32x32 --computeCapabilities=86,89 "
        "--profilingVerbosity=detailed --skipInference",
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
        StageError, match=r"no compute capability 8\.7 \(it lists 7\.5, 8\.0, 8\.6, .*\)\n  The nearest: 8\.6"
    ):
        bench.build(rtx("8.6", "8.7"), cnn())


def test_a_data_centre_gpu_is_sent_to_tensorrt(bench):
    with pytest.raises(StageError) as caught:
        bench.build(rtx("8.6", "9.0"), cnn())
    assert str(caught.value) == (
        "stage 'engine' failed on model.onnx (9f2c61d0): targets.tensorrt_rtx.compute_capabilities.1: tensorrt_rtx "
        "builds for no 9.0 (H100, H200): use the target tensorrt, which builds for such a GPU on the GPU itself\n"
        f"  log: {bench.log}"
    )


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
    assert table([("VERBOSE", row)]) == [
        {
            "name": "conv_myl0_2",
            "kind": "correlation",
            "inputs": [
                {"tensor": "a", "type": "Int8", "format": "(NHWC) Channel major", "shape": [-1, 3, 8, 8]},
                {"tensor": "b", "type": "Float", "format": "x", "shape": [1]},
            ],
            "constants": [{"tensor": "w", "type": "Int8", "format": "z", "shape": [4, 3]}],
            "outputs": [{"tensor": "y", "type": "Half", "format": "(NHWC)", "shape": [-1, 4]}],
            "onnx_nodes": ["conv", "r"],
            "tactic": "t",
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


def inspected(kind):
    """The two layers of `small` as the inspector of TensorRT 10 tells them: one text for format and type."""
    from optimizer.graph.engine_inspector import rows

    tensor = [{"Name": "t", "Dimensions": [4, 8], "Format/Datatype": kind}]
    layers = [
        {"Name": f"{name}_myl0_1", "LayerType": "gemm", "Inputs": tensor, "Outputs": tensor}
        | {"Metadata": f"[ONNX Layer: {name}]"}
        for name in ("fc1", "fc2")
    ]
    return rows(json.dumps({"Layers": layers}), "plan")


@pytest.mark.parametrize(("kind", "share"), [("Half", {"fp16": 1.0}), ("Float", {"fp32": 1.0})])
def test_the_receipt_of_tensorrt_is_the_inspectors(tmp_path, monkeypatch, kind, share):
    """What its builder logs is read without types; the graph's own would then count, whatever the engine does."""
    weights = [numpy_helper.from_array(np.ones((8, 8), np.float16), name) for name in ("w1", "w2")]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="fc1"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], name="fc2"),
    ]
    given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["batch", 8]) for n in ("x", "y"))
    onnx.save(model(nodes, [given], [made], weights), tmp_path / "model.onnx")
    monkeypatch.setattr("optimizer.stages.engine._kernels", lambda built, plan, _: inspected(kind))
    logged = table(
        [("VERBOSE", "Name: fc1, LayerType: CaskGemm, Inputs: [ { Name: x, Format/Datatype: Half }], Outputs: []")]
    )
    assert logged[0]["inputs"] == []
    built = {"package": "tensorrt", "version": "10.13.0", "compute_capabilities": [], "inputs": [], "outputs": []}
    built |= {"profiles": [], "options": {"workspace": 1}, "retry": None, "timing_cache": None, "layers": logged}
    stage = EngineTensorRT(profile=BATCH, precision="fp16")
    stage._write_receipt(built | {"tables": {}}, Artifact("onnx", tmp_path, "a" * 64), tmp_path, print)
    assert json.loads((tmp_path / "engine.json").read_text())["precision"] == share


# Options, with the real TensorRT-RTX.
def with_options(folder, **options):
    one = Bench(folder)
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
    receipt = one.build(EngineRtx(profile=BATCH, compute_capabilities=("8.6",), **options), cnn())
    return receipt, (one.out / "engine.plan").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return with_options(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("option", [{"tf32": False}, {"weight_streaming": True}, {"workspace": 1 << 28}])
def test_what_tensorrt_rtx_honours_changes_its_plan(tmp_path, plain, option):
    receipt, plan = with_options(tmp_path, **option)
    assert plan != plain[1]
    assert receipt["options"] == {**plain[0]["options"], **option}
    assert receipt["options_given"] == option


def test_two_profiles_make_one_engine_that_says_both(tmp_path, plain):
    receipt, plan = with_options(tmp_path, profiles=({"batch": (1, 1, 1)}, {"batch": (2, 4, 16)}))
    assert len(plan) > len(plain[1])
    assert receipt["profiles"] == [
        {"batch": {"min": 1, "opt": 1, "max": 1}},
        {"batch": {"min": 2, "opt": 4, "max": 16}},
    ]
    assert receipt["profile"] == plain[0]["profile"]
    assert "--profile=0 --minShapes=image:1x3x32x32" in receipt["trtexec"]
    assert "--profile=1 --minShapes=image:2x3x32x32" in receipt["trtexec"]


def test_a_workspace_too_small_for_tensorrt_rtx_is_named(bench):
    with pytest.raises(StageError, match=r"no kernel that fits into a workspace of 1000 bytes: .*workspace limit"):
        bench.build(EngineRtx(profile=BATCH, compute_capabilities=("8.6",), workspace=1000), cnn())


def test_what_needs_a_gpu_is_refused_without_one(bench, monkeypatch):
    from optimizer.runtime import cuda

    if cuda.missing() is None:
        pytest.skip("this machine has a GPU, and builds it")
    with pytest.raises(StageError) as caught:
        bench.build(EngineRtx(profile=BATCH, compute_capabilities=("8.6",), strip_plan=True, refit=True), cnn())
    assert str(caught.value) == (
        "stage 'engine' failed on model.onnx (9f2c61d0): targets.tensorrt_rtx.strip_plan, refit: tensorrt_rtx builds "
        f"that beside a GPU alone: {cuda.missing()}. Build there, or remove it\n  log: {bench.log}"
    )


def test_a_limit_of_memory_ends_the_build_with_its_name(bench):
    stage = EngineRtx(profile=BATCH, compute_capabilities=("8.6",), memory_limit=200 << 20)
    with pytest.raises(StageError, match=r"ran out of memory[\s\S]*Raise targets.tensorrt_rtx.memory_limit, 209715200"):
        bench.build(stage, cnn())


# What the library itself does with the options that are refused for it: the day this fails, the table is out of date.
ACCEPTS = """
import sys, hashlib, warnings
import tensorrt_rtx as trt
warnings.simplefilter("ignore")
class Lines(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
    def log(self, severity, text):
        self.lines.append(text)
def configure(config):
  for option in sys.argv[2].split(","):
    match option:
        case "level 0" | "level 5" as level: config.builder_optimization_level = int(level[-1])
        case "hardware": config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        case "cache":
            config.set_timing_cache(config.create_timing_cache(b""), False)
            config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
        case "nothing": pass
        case flag: config.set_flag(getattr(trt.BuilderFlag, flag))
logger = Lines()
builder = trt.Builder(logger)
network = builder.create_network(0)
assert trt.OnnxParser(network, logger).parse_from_file(sys.argv[1])
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
profile = builder.create_optimization_profile()
profile.set_shape("image", (1, 3, 32, 32), (4, 3, 32, 32), (16, 3, 32, 32))
config.add_optimization_profile(profile)
configure(config)
plan = builder.build_serialized_network(network, config)
print(hashlib.sha256(bytes(plan)).hexdigest() if plan is not None else "none", flush=True)
import os
os._exit(0)
"""


def test_tensorrt_rtx_still_ignores_or_fails_what_the_table_refuses_for_it(tmp_path):
    weights = cnn()
    for tensor in weights.graph.initializer:  # the 2:4 pattern along the input channels
        array = numpy_helper.to_array(tensor).copy()
        array[:, 2::4] = 0
        array[:, 3::4] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(weights, tmp_path / "model.onnx")

    def plan(option):
        command = [sys.executable, "-c", ACCEPTS, str(tmp_path / "model.onnx"), option]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]

    plain = plan("nothing")
    assert plain != "none"
    assert plan("level 0") == plain
    assert plan("level 5,hardware,cache,SPARSE_WEIGHTS") == plain
    assert plan("WEIGHT_STREAMING") not in (plain, "none")  # the comparison can tell
    assert plan("VERSION_COMPATIBLE") == "none"
