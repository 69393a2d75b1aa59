"""The precision receipt of OpenVINO: read from the model that it compiled for this CPU, not assumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from optimizer.graph.cost import Site, count, multiplies
from optimizer.graph.receipt import UNKNOWN, Receipt
from optimizer.runtime.openvino import compile_model

# OpenVINO's element types; the capital I8 in the name of a kernel stands for integers without and with sign.
_NAMES = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "f64": "fp64",
    "i8": "int8",
    "u8": "int8",
    "i32": "int32",
    "i4": "int4",
    "u4": "int4",
    "f8e4m3": "fp8",
    "f8e5m2": "fp8",
}
_INTEGERS = frozenset({"i8", "u8"})
_FLOATS = frozenset({"f32", "f16", "bf16"})
# The layers that multiply and accumulate.
_KERNELS = frozenset(
    {
        "Convolution",
        "GroupConvolution",
        "Deconvolution",
        "DeformableConvolution",
        "FullyConnected",
        "MatMul",
        "RNNCell",
        "RNNSeq",
        "MHA",
        "ScaledDotProductAttention",
        "LLMMLP",
        "QKVProjection",
    }
)
# Element-wise operators compiled into one kernel; attention's products are now and then among them.
_COMPILED = "Subgraph"
_FARTHEST = 4  # how many operators behind a product may have given the fused layer its name
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the compiled model. `origins` are the names of the operators that were fused into it."""

    kind: str
    precision: str
    origins: tuple[str, ...]


def openvino_receipt(model: Path, threads: int = 1) -> Receipt:
    """Return the precision of every node as OpenVINO's CPU plugin executes it.

    A layer is found by the names of what was fused into it; products that OpenVINO renamed (LSTM, GRU, Einsum) by the
    layers that are left, where those agree. The CPU decides with the graph: a float16 graph runs in
    float16 where the CPU multiplies it (AVX-512 FP16), else in float32. A layer whose weights are stored in 4 bits is
    called int4, and a note says what it computes in. What is not found (inside If, Loop or Scan, or folded away) is
    UNKNOWN.
    Raises: MissingToolError without openvino, StageError when it refuses the model.
    """
    return receipt_of(onnx.load(model, load_external_data=False), executed_layers(compile_model(model, threads)))


def receipt_of(model: onnx.ModelProto, layers: tuple[Layer, ...]) -> Receipt:
    """Return the receipt of a graph from the layers that OpenVINO made of it."""
    work = count(model)
    kernels = [layer for layer in layers if layer.kind in _KERNELS]
    named = [*(layer for layer in layers if layer.kind == _COMPILED), *kernels]
    executed = {origin: layer for layer in named for origin in layer.origins}
    # What stands in the body of an If, Loop or Scan has names of its own there, which may be those of other nodes.
    sites = [site for site in work.sites if site.model is model]
    found = {s.key: layer for s in sites if (layer := _called(executed, s.key, s.node)) is not None}
    taken = {id(layer) for layer in found.values()}
    free = {origin: layer for origin, layer in executed.items() if id(layer) not in taken}
    consumers = _consumers(model)
    for site in sites:
        if site.key not in found and (layer := _behind(site, free, consumers)) is not None:
            found[site.key] = layer
    left = {layer.precision for layer in kernels if all(layer is not other for other in found.values())}
    if len(left) == 1:
        found |= {site.key: Layer("", min(left), ()) for site in sites if site.key not in found}
    precisions = {site.key: found[site.key].precision if site.key in found else UNKNOWN for site in work.sites}
    return Receipt(precisions, work.macs, work.uncounted, (*work.notes, *_notes(precisions)))


def executed_layers(compiled: Any) -> tuple[Layer, ...]:
    """Return the layers of a compiled model in the order of execution."""
    return tuple(_read(node.get_rt_info()) for node in compiled.get_runtime_model().get_ordered_ops())


def _read(info: Mapping[str, Any]) -> Layer:
    about = {name: info[name].astype(str) for name in ("layerType", "runtimePrecision", "primitiveType")}
    precision, kernel = about["runtimePrecision"], about["primitiveType"].rpartition("_")[2]
    if precision in _INTEGERS and kernel in _FLOATS:
        precision = kernel  # integers are how the weights are stored; the kernel makes floats of them first
    # A name is followed by what OpenVINO's own steps made of the operator: 'conv1/WithoutBiases'.
    origins = [name for given in info["originalLayersNames"].astype(str).split(",") for name in _shortened(given)]
    return Layer(about["layerType"], _NAMES.get(precision, UNKNOWN), tuple(origins))


def _shortened(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition("/")[0]


def _consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    return consumers


def _called(executed: Mapping[str, Layer], name: str, node: onnx.NodeProto) -> Layer | None:
    """Return the layer that has the name of the node or, as the last one before an output has, of its result."""
    return next((executed[origin] for origin in (name, *node.output) if origin in executed), None)


def _behind(site: Site, free: Mapping[str, Layer], consumers: Mapping[str, list[onnx.NodeProto]]) -> Layer | None:
    """Return the layer called after what follows the product: MatMul and the Add of a bias become one FullyConnected
    with the name of the Add.
    """
    node = site.node
    for _ in range(_FARTHEST):
        following = [user for output in node.output for user in consumers.get(output, ())]
        if len(following) != 1 or multiplies(following[0], site.model):
            return None
        node = following[0]
        layer = _called(free, node.name, node)
        if layer is not None:
            return layer
    return None


def _notes(precisions: Mapping[str, str]) -> Iterator[str]:
    stored = sum(precision == "int4" for precision in precisions.values())
    if stored:
        what = f"int4 is how the weights of {stored} product{'s' * (stored > 1)} are stored"
        yield f"{what}; OpenVINO multiplies them in float"
    lost = [name for name, precision in precisions.items() if precision == UNKNOWN]
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        yield f"OpenVINO does not tell what it made of {', '.join(lost[:_SHOWN])}{more}"
