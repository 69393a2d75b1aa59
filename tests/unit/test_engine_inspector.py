"""The engine inspector's JSON becomes the rows of the builder's table; the calls are those of the real bindings."""

import json
from types import SimpleNamespace

import pytest

from optimizer.errors import MissingToolError, StageError
from optimizer.graph.engine_inspector import read_plan, rows
from optimizer.graph.engine_layers import reformat

# As TensorRT's documentation prints a convolution (engine-tools, "Engine Inspector"), and as its later releases do.
DOCUMENTED = {
    "Name": "conv1 + relu1",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "res3",
            "Dimensions": [16, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Outputs": [
        {
            "Name": "res4",
            "Dimensions": [16, 256, 28, 28],
            "Format/Datatype": "Row major linear FP16 format",
        }
    ],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 131072},
    "Bias": {"Type": "Float", "Count": 256},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8",
    "TacticValue": "0x11bde0e1d9f2f35d",
    "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
}
DYNAMIC = {
    "Name": "fc",
    "LayerType": "gemm",
    "Inputs": [{"Name": "x", "Dimensions": [-1, 64], "Format/Datatype": "N/A due to dynamic shapes"}],
    "Outputs": [{"Name": "y", "Dimensions": [-1, 8], "Format/Datatype": "N/A due to dynamic shapes"}],
    "Weights": {"Type": "Half", "Count": 512},
    "Metadata": "[ONNX Layer: fc]",
}
LATER = {
    "Name": "__myl_Move_myl0_1",
    "LayerType": "kgen",
    "Inputs": [{"Name": "image", "Dimensions": [4, 3, 8, 8], "Datatype": "Float", "Format": "(Linear)"}],
    "Outputs": [{"Name": "x", "Dimensions": [4, 3, 8, 8], "Datatype": "Float", "Format": "(NHWC)"}],
    "Constants": [{"Name": "w", "Dimensions": [1], "Datatype": "BFloat16", "Format": "(Linear)"}],
    "TacticName": "__myl_Move_0x18",
}


def text(*layers):
    return json.dumps({"Layers": list(layers), "Bindings": ["image", "y"]})


def test_a_documented_layer_is_read():
    (row,) = rows(text(DOCUMENTED), "plan")
    assert row == {
        "name": "conv1 + relu1",
        "kind": "CaskConvolution",
        "tactic": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8",
        "inputs": [
            {
                "tensor": "res3",
                "type": "Int8",
                "format": "Thirty-two wide channel vectorized row major Int8 format.",
                "shape": [16, 512, 28, 28],
            }
        ],
        "constants": [{"tensor": "weights", "type": "Int8", "format": "", "shape": None}],
        "outputs": [
            {"tensor": "res4", "type": "Half", "format": "Row major linear FP16 format", "shape": [16, 256, 28, 28]}
        ],
        "onnx_nodes": ["conv1", "relu1"],
    }


def test_what_the_inspector_does_not_know_stays_unknown():
    (row,) = rows(text(DYNAMIC), "plan")
    assert (row["inputs"][0]["type"], row["constants"][0]["type"]) == ("unknown", "Half")


def test_format_and_type_apart_are_read_and_a_move_is_one():
    (row,) = rows(text(LATER), "plan")
    assert (row["inputs"][0]["type"], row["inputs"][0]["format"], row["constants"][0]["type"]) == (
        "Float",
        "(Linear)",
        "BFloat16",
    )
    assert reformat(row) == {"why": "layout", "bytes": 2 * 4 * 3 * 8 * 8 * 4}


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("Half(64,1:8,...)", "Half"),
        ("Row major linear BF16 format", "BFloat16"),
        ("Row major linear FP32", "Float"),
        ("FP8E4M3", "FP8"),
        ("Int64", "Int64"),
        ("Int4", "Int4"),
        ("Row major Int32 format", "Int32"),
        ("UInt8", "UInt8"),
        ("Bool", "Bool"),
    ],
)
def test_spellings_of_types(spelled, name):
    layer = {"Name": "a", "Inputs": [{"Name": "x", "Format/Datatype": spelled}]}
    assert rows(text(layer), "plan")[0]["inputs"][0]["type"] == name


@pytest.mark.parametrize("given", ["", "[]", "{}", '{"Layers": null'])
def test_another_text_is_refused(given):
    with pytest.raises(StageError, match=r"^a\.plan: the engine inspector returned no list of layers"):
        rows(given, "a.plan")


def test_a_plan_that_tells_names_alone_is_refused():
    with pytest.raises(StageError, match=r"built without detailed verbosity\n  .*--profilingVerbosity=detailed"):
        rows(text("conv1 + relu1"), "a.plan")


class Engine:
    """An engine of one dynamic input; `calls` has what was asked of its context."""

    num_io_tensors = 2

    def __init__(self):
        self.calls = []

    def get_tensor_name(self, position):
        return ("image", "y")[position]

    def get_tensor_mode(self, name):
        return {"image": "in", "y": "out"}[name]

    def get_tensor_shape(self, name):
        return (-1, 3)

    def get_tensor_profile_shape(self, name, index):
        return [(1, 3), (4, 3), (8, 3)]

    def create_execution_context(self):
        return SimpleNamespace(set_input_shape=lambda name, shape: self.calls.append((name, shape)))

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda form: text(LATER))


def stand_in(engine):
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine)
    logger = SimpleNamespace(INTERNAL_ERROR=0)
    return SimpleNamespace(
        Logger=type("Logger", (), {"INTERNAL_ERROR": 0, "__init__": lambda self, level: None}),
        Runtime=lambda given: runtime,
        TensorIOMode=SimpleNamespace(INPUT="in"),
        LayerInformationFormat=SimpleNamespace(JSON=1),
        logger=logger,
    )


@pytest.fixture
def gpu(monkeypatch):
    from contextlib import nullcontext

    closed = []
    monkeypatch.setattr(
        "optimizer.graph.engine_inspector.Cuda",
        lambda index: SimpleNamespace(current=nullcontext(), close=lambda: closed.append(index)),
    )
    return closed


def test_dynamic_axes_get_their_usual_size_before_the_engine_is_read(gpu, tmp_path, monkeypatch):
    engine = Engine()
    monkeypatch.setattr("importlib.import_module", lambda name: stand_in(engine))
    (tmp_path / "engine.plan").write_bytes(b"plan")
    assert read_plan(tmp_path / "engine.plan", "tensorrt")[0]["name"] == "__myl_Move_myl0_1"
    assert engine.calls == [("image", (4, 3))]
    assert gpu == [0]


@pytest.mark.parametrize(
    ("receipt", "trusted", "allowed"),
    [({}, False, False), ({"version_compatible": True}, False, True), ({}, True, True)],
)
def test_a_lean_runtime_is_run_where_the_receipt_or_the_caller_says_so(
    gpu, tmp_path, monkeypatch, receipt, trusted, allowed
):
    library = stand_in(Engine())
    monkeypatch.setattr("importlib.import_module", lambda name: library)
    (tmp_path / "engine.plan").write_bytes(b"plan")
    (tmp_path / "engine.json").write_text(json.dumps({"options": receipt}))
    read_plan(tmp_path / "engine.plan", "tensorrt", trusted=trusted)
    assert getattr(library.Runtime(None), "engine_host_code_allowed", False) is allowed


def test_a_plan_that_does_not_open_is_told_and_the_gpu_is_given_back(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: stand_in(None))
    (tmp_path / "engine.plan").write_bytes(b"plan")
    with pytest.raises(StageError, match="the plan does not open here"):
        read_plan(tmp_path / "engine.plan", "tensorrt")
    assert gpu == [0]


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError("no tensorrt")

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(MissingToolError, match="needs tensorrt, which cannot be imported"):
        read_plan(tmp_path / "engine.plan", "tensorrt")


def test_the_names_used_exist_in_the_real_bindings():
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    for name in ("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape"):
        assert hasattr(trt.ICudaEngine, name)
    for name in ("create_engine_inspector", "create_execution_context", "get_tensor_profile_shape"):
        assert hasattr(trt.ICudaEngine, name)
    assert hasattr(trt.EngineInspector, "get_engine_information")
    assert hasattr(trt.EngineInspector, "execution_context")
    assert hasattr(trt.IExecutionContext, "set_input_shape")
    assert trt.LayerInformationFormat.JSON is not trt.LayerInformationFormat.ONELINE
