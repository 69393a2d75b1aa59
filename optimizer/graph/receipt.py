"""The precision receipt: which arithmetic a graph's multiply-accumulates get, read back instead of assumed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from optimizer.errors import MissingToolError, StageError
from optimizer.graph.cost import OPERANDS, macs
from optimizer.graph.index import GraphIndex, node_key
from optimizer.graph.shapes import TensorType, infer
from optimizer.runtime.onnx import CRASHING_OPTIMIZERS

_NAMES = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.DOUBLE: "fp64",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.FLOAT8E5M2: "fp8",
}
_INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "QLinearConvTranspose",
        "QLinearMatMul",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    }
)
_ERRORS_ONLY = 3
HIDDEN = "hidden in fused operators"


@dataclass(frozen=True, slots=True)
class Receipt:
    """Precision and multiply-accumulates of every node that has any, by node name."""

    precisions: Mapping[str, str]
    macs: Mapping[str, int]

    @property
    def shares(self) -> dict[str, float]:
        """The share of multiply-accumulates per precision; empty where nothing multiplies."""
        total = sum(self.macs.values())
        sums: dict[str, int] = {}
        for name, count in self.macs.items():
            sums[self.precisions[name]] = sums.get(self.precisions[name], 0) + count
        return {name: sums[name] / total for name in sorted(sums)} if total else {}


def delivered_by_graph(model: Path | onnx.ModelProto) -> dict[str, float]:
    """Return the shares that a strongly typed builder executes; see `graph_receipt`."""
    return graph_receipt(model).shares


def delivered_by_onnxruntime(model: Path, threads: int = 1) -> dict[str, float]:
    """Return the shares that onnxruntime's CPU provider executes; see `onnxruntime_receipt`."""
    return onnxruntime_receipt(model, threads).shares


def delivered_by_cuda_provider(model: Path) -> dict[str, float]:
    """Return the shares that onnxruntime's CUDA provider executes, by the types of the graph.

    Of the integer operators it has QuantizeLinear, DequantizeLinear and MatMulInteger: an operator between Q/DQ
    computes in float there, and float16 stays float16. Not read back from the GPU.
    Source: docs/FAQ.md and docs/OperatorKernels.md of microsoft/onnxruntime.
    """
    graph = onnx.load(model, load_external_data=False)
    index = _typed_index(graph)
    precisions = {node_key(n): _executed(index, n) for n in graph.graph.node if n.op_type in OPERANDS}
    return Receipt(precisions, macs(graph)).shares


def graph_receipt(model: Path | onnx.ModelProto) -> Receipt:
    """Return the precision of every node as a strongly typed builder executes it.

    A node whose operands are both dequantized computes in their stored type; any other in the type of its activation.
    Nodes inside If, Loop and Scan and recurrent layers are not counted.
    Raises: StageError when a shape that the count needs is unknown.
    """
    if isinstance(model, Path):
        model = onnx.load(model, load_external_data=False)
    return Receipt(precision_by_node(model), macs(model))


def onnxruntime_receipt(model: Path, threads: int = 1) -> Receipt:
    """Return the precision of every node as onnxruntime's CPU provider executes it.

    Read from the graph that onnxruntime optimised for itself, before its layout transforms: float16 operators appear
    there in float32, between the Casts it inserts, and Q/DQ around an operator it has no integer kernel for stays
    Q/DQ. Work that it hid in a larger fused operator (attention) runs in float32 and is counted so, as HIDDEN.
    Raises: MissingToolError without onnxruntime, StageError when it refuses the model.
    """
    original = onnx.load(model, load_external_data=False)
    with tempfile.TemporaryDirectory(prefix="receipt-") as folder:
        optimised = _optimise(model, Path(folder) / "optimised.onnx", threads)
    before = infer(original)
    expected = macs(original, before)
    counted = _count(optimised, before, expected)
    index = _typed_index(optimised, before)
    precisions = {_name(n, expected): _executed(index, n) for n in optimised.graph.node if n.op_type in OPERANDS}
    hidden = sum(expected.values()) - sum(counted.values())
    if hidden > 0:
        counted[HIDDEN], precisions[HIDDEN] = hidden, "fp32"
    return Receipt(precisions, counted)


def precision_by_node(model: onnx.ModelProto) -> dict[str, str]:
    """Return what a strongly typed builder computes in, for every node that multiplies and accumulates."""
    index = _typed_index(model)
    return {node_key(n): _requested(index, n) for n in model.graph.node if n.op_type in OPERANDS}


def _requested(index: GraphIndex, node: onnx.NodeProto) -> str:
    stored = [_stored_type(index, node.input[i]) for i in OPERANDS[node.op_type]]
    if all(stored):
        return _NAMES.get(stored[1], "unknown")
    return _executed(index, node)


def _stored_type(index: GraphIndex, name: str) -> int:
    """Return the integer type behind a DequantizeLinear, or 0 where `name` is no output of one."""
    producer = index.producers.get(name)
    if producer is None or producer.op_type != "DequantizeLinear":
        return 0
    # What is dequantized has the type of the zero point; without one ONNX says so by the tensor alone.
    known = [index.types.get(n, 0) for n in (producer.input[0], *producer.input[2:3])]
    return next((t for t in known if t), 0)


def _executed(index: GraphIndex, node: onnx.NodeProto) -> str:
    if node.op_type in _INTEGER_KERNELS:
        return "int8"
    return _NAMES.get(index.float_type(node.input[0]), "unknown")


def _typed_index(model: onnx.ModelProto, known: Mapping[str, TensorType] | None = None) -> GraphIndex:
    """Index a graph with the types of its tensors; `known` has those of the graph that onnxruntime made it from.

    onnxruntime gives a tensor another name where it changes its type, and ONNX cannot infer behind its own operators.
    """
    index = GraphIndex(model)
    types = {**infer(model), **(known or {})}
    index.types |= {name: t.elem_type for name, t in types.items() if t.elem_type and name not in index.types}
    return index


def _name(node: onnx.NodeProto, expected: Mapping[str, int]) -> str:
    """Return the name before onnxruntime fused others into the node: 'fused NAME', 'NAME/SomeFusion//Another/'."""
    name = origin = node_key(node)
    while origin and origin not in expected:
        origin = origin.removeprefix("fused ") if origin.startswith("fused ") else origin.rpartition("/")[0]
    return origin or name


def _count(optimised: onnx.ModelProto, before: Mapping[str, TensorType], expected: Mapping[str, int]) -> dict[str, int]:
    """Count the optimised graph's nodes: by name where onnxruntime kept it, else by the shapes of both graphs."""
    after = infer(optimised)
    known = {name: t for name, t in after.items() if t.shape is not None and None not in t.shape}
    types = {**after, **before, **known}
    counts: dict[str, int] = {}
    for node in optimised.graph.node:
        if node.op_type in OPERANDS:
            alone = onnx.ModelProto(graph=onnx.GraphProto(node=[node]))
            name = _name(node, expected)
            counts[name] = expected[name] if name in expected else macs(alone, types)[node_key(node)]
    return counts


def _optimise(model: Path, target: Path, threads: int) -> onnx.ModelProto:
    """Let onnxruntime optimise the model for the CPU and return what it made of it, without weights."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingToolError(
            f"needs onnxruntime to read back its precision ({error})", hint="pip install onnxruntime"
        ) from error
    options = ort.SessionOptions()
    # Not ALL: its layout transforms rename and reblock operators, and change no arithmetic.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    # Weights beside the file: a graph of more than 2 GB could not be written otherwise.
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "65536")
    try:
        ort.InferenceSession(
            str(model),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=CRASHING_OPTIMIZERS,
        )
    except tuple(_refusals(ort)) as error:
        raise StageError(
            f"onnxruntime refuses the model: {' '.join(str(error).split())[:400]}", where=str(model)
        ) from error
    return onnx.load(target, load_external_data=False)


def _refusals(ort: Any) -> Iterable[type[Exception]]:
    """Yield what onnxruntime raises: its own kinds have no common base, and older releases raise RuntimeError."""
    for kind in vars(ort.capi.onnxruntime_pybind11_state).values():
        if isinstance(kind, type) and issubclass(kind, Exception):
            yield kind
    yield from (RuntimeError, ValueError)
