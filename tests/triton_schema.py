"""Reads config.pbtxt with Triton's own schema, and asks of it what Triton's backends ask when they load a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@cache
def _schema() -> Any:
    """The generated module alone: the package's own import of it needs grpcio, and an older protobuf."""
    client = importlib.util.find_spec("tritonclient")
    if client is None:
        pytest.skip("needs the tritonclient package, for model_config_pb2")
    path = Path(next(iter(client.submodule_search_locations or ()))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(text: str) -> Any:
    """Return the ModelConfig; what the schema does not know is an error."""
    from google.protobuf import text_format

    return text_format.Parse(text, _schema().ModelConfig())


def read(model: Path) -> Any:
    return parse((model / "config.pbtxt").read_text(encoding="utf-8"))


def type_name(value: int) -> str:
    name: str = _schema().DataType.Name(value)
    return name


# onnxruntime_backend, src/onnxruntime_utils.cc, ModelConfigDataTypeToOnnxDataType.
ONNX_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}


def refusals(config: Any, session: Any) -> list[str]:
    """What the onnxruntime backend would refuse of this configuration: names, types, dims against the session's.

    Source: onnxruntime_backend, src/onnxruntime.cc, ValidateInputs and ValidateOutputs; CompareDimsSupported.
    """
    found = []
    for kind, declared, nodes, exactly in (
        ("input", config.input, session.get_inputs(), False),
        ("output", config.output, session.get_outputs(), True),
    ):
        if {tensor.name for tensor in declared} != {node.name for node in nodes}:
            found.append(f"{kind}s are {[t.name for t in declared]}, the model has {[n.name for n in nodes]}")
            continue
        by_name = {node.name: node for node in nodes}
        for tensor in declared:
            node = by_name[tensor.name]
            if type_name(tensor.data_type) != ONNX_TYPES[node.type]:
                found.append(f"{kind} '{tensor.name}' is {type_name(tensor.data_type)}, the model has {node.type}")
            model = [axis if isinstance(axis, int) else -1 for axis in node.shape]
            if not _supported(_full(tensor, config.max_batch_size), model, exactly):
                found.append(f"{kind} '{tensor.name}' is {_full(tensor, config.max_batch_size)}, the model has {model}")
    return found


def _full(tensor: Any, largest: int) -> list[int]:
    dims = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
    return [-1, *dims] if largest else dims


def _supported(configured: Sequence[int], model: Sequence[int], exactly: bool) -> bool:
    if not model:
        return all(axis == 1 for axis in configured)
    if len(configured) != len(model):
        return False
    pairs = zip(configured, model, strict=True)
    return all(here == there or (not exactly and -1 in (here, there)) for here, there in pairs)


def parameters(config: Any) -> Mapping[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}
