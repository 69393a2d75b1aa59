"""The layers of an engine as TensorRT's own inspector shows them: needs the GPU that the plan is for."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from optimizer.errors import MissingToolError, StageError
from optimizer.runtime.cuda import Cuda
from optimizer.runtime.engine_interface import holds_host_code, read_receipt, register_plugins

Row = dict[str, Any]

# Spellings of data types in the inspector's text and the name that the builder's table has for each.
_TYPES = (
    (re.compile(r"BF16|BFloat16", re.IGNORECASE), "BFloat16"),
    (re.compile(r"FP32|Float32|\bFloat\b", re.IGNORECASE), "Float"),
    (re.compile(r"FP16|Float16|\bHalf\b", re.IGNORECASE), "Half"),
    (re.compile(r"FP8|E4M3", re.IGNORECASE), "FP8"),
    (re.compile(r"FP4|E2M1", re.IGNORECASE), "FP4"),
    (re.compile(r"UInt8", re.IGNORECASE), "UInt8"),
    (re.compile(r"Int4(?!\d)", re.IGNORECASE), "Int4"),
    (re.compile(r"Int8", re.IGNORECASE), "Int8"),
    (re.compile(r"Int32", re.IGNORECASE), "Int32"),
    (re.compile(r"Int64", re.IGNORECASE), "Int64"),
    (re.compile(r"Bool", re.IGNORECASE), "Bool"),
)
UNKNOWN = "unknown"  # what the inspector says of a tensor whose shape it does not know
_ONNX = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]")


def read_plan(
    plan: Path, package: Literal["tensorrt", "tensorrt_rtx"], index: int = 0, *, trusted: bool = False
) -> list[Row]:
    """Return the layers of a plan opened on GPU `index`, in the form of `engine_log.table`.

    Dynamic axes have the usual sizes of the first profile: without them the inspector knows no formats. `trusted`: the
    plan was built here, and may bring a lean runtime; of another one its receipt must say that it does.
    Raises: MissingToolError without the package or the GPU; StageError when the plan does not open here, or was built
    without detailed verbosity.
    """
    try:
        trt = importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise MissingToolError(f"needs {package}, which cannot be imported ({error})", where=str(plan)) from error
    register_plugins(trt, package)
    gpu = Cuda(index)
    try:
        with gpu.current:
            return rows(_inspect(trt, plan, trusted or holds_host_code(read_receipt(plan))), str(plan))
    finally:
        gpu.close()


def _inspect(trt: Any, plan: Path, host_code: bool) -> str:
    """Return the inspector's JSON; engine and runtime are gone afterwards."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:  # how pybind11 says that the factory returned null
        raise MissingToolError("TensorRT cannot start its runtime: the driver is too old", where=str(plan)) from error
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise StageError("the plan does not open here: another version, GPU or compute capability", where=str(plan))
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context()
    if context is not None:
        _set_usual_shapes(trt, engine, context)
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _set_usual_shapes(trt: Any, engine: Any, context: Any) -> None:
    for position in range(engine.num_io_tensors):
        name = engine.get_tensor_name(position)
        given = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        if given and -1 in tuple(engine.get_tensor_shape(name)):
            context.set_input_shape(name, tuple(engine.get_tensor_profile_shape(name, 0)[1]))


def rows(text: str, where: str) -> list[Row]:
    """Return the layers that the inspector's JSON lists.

    Raises: StageError when it is no such JSON, or lists names alone.
    """
    try:
        listed = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"the engine inspector returned no list of layers: {text[:200]!r}", where=where) from error
    if any(isinstance(layer, str) for layer in listed):
        raise StageError(
            "the plan tells the names of its layers alone: it was built without detailed verbosity",
            where=where,
            hint="Build it again with optimize build, or with trtexec --profilingVerbosity=detailed.",
        )
    return [_row(layer) for layer in listed]


def _row(layer: Mapping[str, Any]) -> Row:
    constants = [_tensor(tensor) for tensor in layer.get("Constants", ())]
    weights = layer.get("Weights")
    if isinstance(weights, Mapping) and weights.get("Type"):
        constants.append({"tensor": "weights", "type": _type(str(weights["Type"])), "format": "", "shape": None})
    return {
        "name": str(layer.get("Name", "")),
        "kind": str(layer.get("LayerType", "")),
        "tactic": str(layer.get("TacticName", layer.get("TacticValue", ""))),
        "inputs": [_tensor(tensor) for tensor in layer.get("Inputs", ())],
        "constants": constants,
        "outputs": [_tensor(tensor) for tensor in layer.get("Outputs", ())],
        "onnx_nodes": _ONNX.findall(str(layer.get("Metadata", ""))),
    }


def _tensor(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """TensorRT 8 to 10 write one text for format and type ("Row major linear FP16 format"), later ones two."""
    joint = str(tensor.get("Format/Datatype", ""))
    shape = tensor.get("Dimensions")
    return {
        "tensor": str(tensor.get("Name", "")),
        "type": _type(str(tensor.get("Datatype", joint))),
        "format": str(tensor.get("Format", joint)),
        "shape": [int(size) for size in shape] if isinstance(shape, list) else None,
    }


def _type(text: str) -> str:
    return next((name for spelled, name in _TYPES if spelled.search(text)), UNKNOWN)
