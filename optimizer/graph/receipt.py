"""The precision receipt: which arithmetic a graph's multiply-accumulates get, read back instead of assumed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from optimizer.errors import MissingToolError, StageError
from optimizer.graph.bodies import Types, infer_all
from optimizer.graph.cost import OPERANDS, Site, Work, count
from optimizer.graph.index import GraphIndex
from optimizer.runtime.onnx import keep_arithmetic

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
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.UINT4: "int4",
}
_FOUR_BITS = frozenset({onnx.TensorProto.INT4, onnx.TensorProto.UINT4})
# What onnxruntime makes of a DequantizeLinear with blocks and the product behind it; the node keeps its name.
_FOUR_BIT_KERNEL = "MatMulNBits"
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
UNKNOWN = "unknown"  # the share of what cannot be counted


@dataclass(frozen=True, slots=True)
class Receipt:
    """Precision and multiply-accumulates of every node that has any, by node name.

    Of the nodes in `uncounted` the multiply-accumulates are a lower bound; `notes` say so, and what was assumed.
    """

    precisions: Mapping[str, str]
    macs: Mapping[str, int]
    uncounted: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def shares(self) -> dict[str, float]:
        """The share of multiply-accumulates per precision; empty where nothing multiplies.

        UNKNOWN is at least the share of what cannot be counted, so that the others are the most they can be.
        """
        total = sum(self.macs.values())
        sums: dict[str, int] = {}
        for name, macs in self.macs.items():
            kind = UNKNOWN if name in self.uncounted else self.precisions[name]
            sums[kind] = sums.get(kind, 0) + macs
        return {name: sums[name] / total for name in sorted(sums)} if total else {}


def delivered_by_graph(model: Path | onnx.ModelProto) -> dict[str, float]:
    """Return the shares that a strongly typed builder executes; see `graph_receipt`."""
    return graph_receipt(model).shares


def delivered_by_onnxruntime(model: Path, threads: int = 1) -> dict[str, float]:
    """Return the shares that onnxruntime's CPU provider executes; see `onnxruntime_receipt`."""
    return onnxruntime_receipt(model, threads).shares


def delivered_by_cuda_provider(model: Path) -> dict[str, float]:
    """Return the shares that onnxruntime's CUDA provider executes; see `cuda_receipt`."""
    return cuda_receipt(model).shares


def cuda_receipt(model: Path) -> Receipt:
    """Return the precision of every node as onnxruntime's CUDA provider executes it, by the types of the graph.

    Of the integer operators it has QuantizeLinear, DequantizeLinear and MatMulInteger: an operator between Q/DQ
    computes in float there, and float16 stays float16. Not read back from the GPU.
    Source: docs/FAQ.md and docs/OperatorKernels.md of microsoft/onnxruntime.
    """
    return _receipt(count(model), _executed)


def graph_receipt(model: Path | onnx.ModelProto) -> Receipt:
    """Return the precision of every node as a strongly typed builder executes it.

    A node whose operands are both dequantized computes in their stored type; any other in the type of its activation.
    One that reads 4-bit weights is called int4 and computes in the type of its activation too, which a note says.
    """
    return _receipt(count(model), _requested)


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
    before: Types = infer_all(original)
    expected = count(original, before)
    wanted = expected.macs
    precisions: dict[str, str] = {}
    counted: dict[str, int] = {}
    unplaced = "fp32"
    # By name where onnxruntime kept it, else by the shapes of both graphs.
    for site in expected.sites:
        before = {**site.types, **before}
    made = count(optimised, _both(before, infer_all(optimised)))
    indices = _Indices(before)
    for site in made.sites:
        name = _name(site.key, wanted)
        if name not in wanted and site.reason:
            unplaced = UNKNOWN  # a fused operator of which neither the name nor the shapes tell what it does
            continue
        counted[name] = wanted.get(name, site.macs)
        precisions[name] = _executed(indices.of(site), site.node)
    for node in optimised.graph.node:
        if node.op_type == _FOUR_BIT_KERNEL and (name := _name(node.name, wanted)) in wanted:
            counted[name], precisions[name] = wanted[name], "int4"
    gone = expected.uncounted - counted.keys()
    counted |= {name: wanted[name] for name in gone}
    precisions |= dict.fromkeys(gone, UNKNOWN)
    hidden = sum(wanted.values()) - sum(counted.values())
    if hidden > 0:
        counted[HIDDEN], precisions[HIDDEN] = hidden, unplaced
    return Receipt(precisions, counted, expected.uncounted, (*expected.notes, *_stored_notes(precisions)))


def precision_by_node(model: onnx.ModelProto) -> dict[str, str]:
    """Return what a strongly typed builder computes in, for every node that multiplies and accumulates."""
    return dict(graph_receipt(model).precisions)


def _receipt(work: Work, precision: Callable[[GraphIndex, onnx.NodeProto], str]) -> Receipt:
    indices = _Indices()
    precisions = {site.key: precision(indices.of(site), site.node) for site in work.sites}
    return Receipt(precisions, work.macs, work.uncounted, (*work.notes, *_stored_notes(precisions)))


def _stored_notes(precisions: Mapping[str, str]) -> list[str]:
    found = sum(precision == "int4" for precision in precisions.values())
    if not found:
        return []
    what = f"int4 is how the weights of {found} product{'s' * (found > 1)} are stored"
    return [f"{what}; they are multiplied in the type of what they meet"]


class _Indices:
    """One index per graph that holds sites, with the types of its tensors.

    `known` has the types of the graph that onnxruntime made another from: it gives a tensor another name where it
    changes its type, and ONNX cannot infer behind its own operators.
    """

    def __init__(self, known: Types | None = None) -> None:
        self._known = known or {}
        self._made: dict[int, GraphIndex] = {}

    def of(self, site: Site) -> GraphIndex:
        """Return the index of the graph that the site stands in."""
        if id(site.model) not in self._made:
            index = GraphIndex(site.model)
            types = {**site.types, **self._known}
            index.types |= {name: t.elem_type for name, t in types.items() if t.elem_type and not index.types.get(name)}
            self._made[id(site.model)] = index
        return self._made[id(site.model)]


def _requested(index: GraphIndex, node: onnx.NodeProto) -> str:
    stored = [_stored_type(index, node.input[i]) for i in OPERANDS.get(node.op_type, ())]
    if stored and all(stored):
        return _NAMES.get(stored[1], UNKNOWN)
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
    if any(_stored_type(index, node.input[i]) in _FOUR_BITS for i in OPERANDS.get(node.op_type, ())[1:]):
        return "int4"
    return _NAMES.get(index.float_type(node.input[0]), UNKNOWN)


def _name(key: str, expected: Mapping[str, int]) -> str:
    """Return the name before onnxruntime fused others into the node: 'fused NAME', 'NAME/SomeFusion//Another/'."""
    origin = key
    while origin and origin not in expected:
        origin = origin.removeprefix("fused ") if origin.startswith("fused ") else origin.rpartition("/")[0]
    return origin or key


def _both(before: Types, after: Types) -> Types:
    """Return the types of the optimised graph, and where they are not known those of the one it was made from."""
    known = {name: t for name, t in after.items() if t.shape is not None and None not in t.shape}
    return {**after, **before, **known}


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
    without = keep_arithmetic(options, model)
    # Weights beside the file: a graph of more than 2 GB could not be written otherwise.
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "65536")
    try:
        ort.InferenceSession(
            str(model),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=without,
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
