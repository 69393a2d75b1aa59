"""Read ONNX models and infer their types, whatever their size."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner
import onnx.shape_inference

from optimizer.errors import StageError

_SMALL_TENSOR_BYTES = 4096  # shape inference reads the values of small tensors only: shapes, axes, sizes


def read_model(path: Path) -> onnx.ModelProto:
    """Load a model with its external data; local functions are inlined, so that every node is an operator."""
    model = onnx.load(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if model.ir_version < 4:
        # Before IR 4 every initializer had to be an input as well; from IR 4 on that would make it one to feed.
        held = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in held]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = 4
    return model


def infer_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fill in `value_info` and return the same model; weights stay out of the protobuf call, so size is no limit."""
    graph = model.graph
    declared = {value.name for value in graph.input}
    outline = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    outline.graph.name = graph.name or "graph"
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(outline.graph, field).extend(getattr(graph, field))
    for tensor in graph.initializer:
        if tensor.ByteSize() <= _SMALL_TENSOR_BYTES:
            outline.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            proxy = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            outline.graph.input.append(proxy)
    try:
        inferred = onnx.shape_inference.infer_shapes(outline, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise StageError(f"the types of the graph contradict each other: {error}", where=graph.name) from error
    del graph.value_info[:]
    graph.value_info.extend(inferred.graph.value_info)
    return model
