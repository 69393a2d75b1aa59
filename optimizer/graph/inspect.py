"""What is in a file: an ONNX graph, an engine by the receipt beside it, or a calibration table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from optimizer.digest import sha256_bytes
from optimizer.errors import OptimizerError, StageError, UsageError
from optimizer.graph.engine_inspector import read_plan
from optimizer.graph.engine_layers import joined
from optimizer.graph.engine_receipt import engine_receipt
from optimizer.graph.index import node_key
from optimizer.graph.interface import interface
from optimizer.graph.layer_table import graph_rows
from optimizer.graph.layers import FILE, LayerRow, as_executed, read_rows
from optimizer.graph.modules import module_of
from optimizer.graph.typed import infer_types
from optimizer.runtime.tensorrt import missing
from optimizer.types import TensorSpec

Document = dict[str, Any]

_MAIN_FILES = ("engine.json", "model.onnx", "table.json")  # of an artifact's folder; an engine is known by its receipt
_UNREADABLE = (
    DecodeError,
    ValueError,
    OSError,
    OptimizerError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)
_ENGINE_KEYS = {"package", "version", "inputs", "outputs"}
_ALLOWED = (
    "an .onnx file, engine.plan beside its engine.json, a calibration table (table.json), its diagnosis.json, "
    "or an artifact's folder"
)


def inspect(path: Path) -> Document:
    """Return a summary in plain JSON types; `kind` is onnx, engine or calibration.

    Raises: UsageError when there is no such file, or none of these can be read from it.
    """
    file = _file(path)
    if file.suffix == ".plan":
        receipt = file.with_name("engine.json")
        if not receipt.is_file():
            raise UsageError(
                "an engine is inspected by its engine.json, and there is none beside it",
                where=str(path),
                hint="Only a GPU can open the plan itself; keep the two files together.",
            )
        file = receipt
    if file.suffix == ".json":
        return _of_json(file)
    try:
        return _of_onnx(onnx.load(file), file)
    except UsageError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"cannot be read as ONNX: {reason}", where=str(path), hint=f"Allowed: {_ALLOWED}.") from error


def _file(path: Path) -> Path:
    if path.is_dir():
        found = next((path / name for name in _MAIN_FILES if (path / name).is_file()), None)
        if found is None:
            raise UsageError("holds nothing that can be inspected", where=str(path), hint=f"Allowed: {_ALLOWED}.")
        return found
    if not path.is_file():
        raise UsageError("there is no such file", where=str(path), hint=f"Allowed: {_ALLOWED}.")
    return path


def _of_json(file: Path) -> Document:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"is no JSON: {error}", where=str(file), hint=f"Allowed: {_ALLOWED}.") from error
    if isinstance(document, dict) and document.keys() >= _ENGINE_KEYS:
        return _of_engine(document, file)
    if isinstance(document, dict) and isinstance(document.get("tensors"), dict) and "method" in document:
        return {"kind": "calibration", "path": str(file), "bytes": file.stat().st_size, **document}
    raise UsageError(
        "is neither an engine's receipt nor a calibration table", where=str(file), hint=f"Allowed: {_ALLOWED}."
    )


def _of_onnx(model: onnx.ModelProto, file: Path) -> Document:
    if not model.opset_import:
        raise ValueError("it names no opset")  # an empty file parses as an empty model
    inputs, outputs = interface(model)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    precisions = _precisions(infer_types(model))
    shares = Counter(entry["precision"] for entry in precisions)
    return {
        "kind": "onnx",
        "path": str(file),
        "bytes": _bytes(model, file),
        "opset": {entry.domain or "ai.onnx": int(entry.version) for entry in model.opset_import},
        "inputs": _json(inputs),
        "outputs": _json(outputs),
        "operators": dict(sorted(Counter(_operator(node) for node in model.graph.node).items())),
        "parameters": sum(_size(tensor) for tensor in held.values()),
        "precision": {kind: round(count / len(precisions), 4) for kind, count in sorted(shares.items())},
        "nodes": precisions,
        **_layers(model, file),
        "initializers": {name: _describe(tensor) for name, tensor in held.items()},
    }


def _layers(model: onnx.ModelProto, file: Path) -> Document:
    """Return what multiplies and accumulates, and where its precision was read from."""
    own = graph_rows(model)
    rows, source = own, _TYPES
    beside = _receipt(file.parent)
    if beside is not None and {row.node for row in beside} == {row.node for row in own}:
        rows, source = beside, f"{FILE} beside it"
    elif beside is not None:
        source = f"{_TYPES}: {FILE} beside it is of another graph"
    return {"layers": [asdict(row) for row in rows], "layers_from": source}


_TYPES = "the graph's types"


def _receipt(folder: Path) -> tuple[LayerRow, ...] | None:
    try:
        return read_rows(folder)
    except StageError as error:
        raise UsageError(error.what, where=error.where, hint=error.hint) from error


def _of_engine(receipt: Document, file: Path) -> Document:
    """Return the receipt, by the plan itself where a GPU can open it, joined to the graph where that is at hand."""
    plan = file.with_name("engine.plan")
    graph = next((p for p in _graphs(receipt, file) if p.is_file()), None)
    document = {
        "kind": "engine",
        "path": str(plan if plan.is_file() else file),
        "bytes": plan.stat().st_size if plan.is_file() else None,
        **receipt,
        **_by_plan(receipt, plan, graph),
    }
    if graph is None:
        return {**document, "graph": None, "nodes": [], "graph_nodes": {}, "graph_types": {}}
    model = onnx.load(graph, load_external_data=False)
    rows: tuple[LayerRow, ...] = _receipt(graph.parent) or graph_rows(model)
    nodes = [asdict(row) for row in as_executed(rows, document.get("executed", {}), "the engine")]
    operators = {node_key(node): _operator(node) for node in model.graph.node}
    usual = {axis: sizes["opt"] for axis, sizes in receipt.get("profile", {}).items()}
    layers = joined(document.get("layers", ()), model, usual)
    types = {entry["name"]: entry["precision"] for entry in _precisions(infer_types(model))}
    found = {"layers": layers, "nodes": nodes, "graph_nodes": operators, "graph_types": types}
    return {**document, "graph": str(graph), **found}


def _by_plan(receipt: Document, plan: Path, graph: Path | None) -> Document:
    """Return layers and precision as the engine inspector tells them; where no GPU opens the plan, why not."""
    absent = "there is no plan beside it" if not plan.is_file() else missing(receipt["package"], "cuda:0")
    if absent:
        return {"layers_from": f"engine.json ({absent})"}
    try:
        rows = read_plan(plan, receipt["package"])
    except OptimizerError as error:
        return {"layers_from": f"engine.json ({error.what})"}
    measured = {row["name"]: row["time_ms"] for row in receipt.get("layers", ()) if "time_ms" in row}
    rows = [row | ({"time_ms": measured[row["name"]]} if row["name"] in measured else {}) for row in rows]
    if graph is None:
        return {"layers": rows, "layers_from": "the plan"}
    found = engine_receipt(graph, rows)
    delivered = {"precision": found.shares, "precision_notes": list(found.notes), "executed": dict(found.precisions)}
    return {"layers": rows, "layers_from": "the plan", **delivered}


def _graphs(about: Document, file: Path) -> Iterable[Path]:
    """Yield where the ONNX of an engine may lie: in a run's folder, by its content."""
    digest = str(about.get("onnx_sha256", ""))
    if digest:
        yield file.parent.parent / "graphs" / digest[:16] / "model.onnx"


def _bytes(model: onnx.ModelProto, file: Path) -> int:
    """Return the size on disk, external data included."""
    outline = onnx.load(file, load_external_data=False)
    places = {e.value for t in outline.graph.initializer for e in t.external_data if e.key == "location"}
    return sum(path.stat().st_size for path in (file, *(file.parent / place for place in places)))


def _json(specs: Iterable[TensorSpec]) -> list[Document]:
    return [spec.to_json() for spec in specs]


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else str(node.op_type)


def _size(tensor: onnx.TensorProto) -> int:
    size = 1
    for length in tensor.dims:
        size *= length
    return size


def _describe(tensor: onnx.TensorProto) -> Document:
    digest = sha256_bytes(numpy_helper.to_array(tensor).tobytes())
    return {"dtype": _type_name(tensor.data_type), "shape": list(tensor.dims), "sha256": digest}


def _precisions(model: onnx.ModelProto) -> list[Document]:
    """Return each node with the element type it computes in: of integers where Q/DQ says so, else of its output."""
    graph = model.graph
    types = {t.name: int(t.data_type) for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = int(value.type.tensor_type.elem_type)
    for node in graph.node:  # DequantizeLinear says what its reader computes in
        if node.op_type == "DequantizeLinear" and node.input[0] in types:
            types[f"before {node.output[0]}"] = types[node.input[0]]
    return [
        {
            "name": node_key(node),
            "operator": _operator(node),
            "precision": _precision(node, types),
            "module": module_of(node),
        }
        for node in graph.node
    ]


def _precision(node: onnx.NodeProto, types: dict[str, int]) -> str:
    quantized = [types[key] for name in node.input[:2] if (key := f"before {name}") in types]
    if node.op_type in ("Conv", "MatMul", "Gemm", "ConvTranspose") and len(quantized) == 2:
        return _type_name(quantized[1])
    return _type_name(types.get(node.output[0], 0)) if node.output else "unknown"


def _type_name(elem_type: int) -> str:
    if not elem_type:
        return "unknown"
    name: str = onnx.TensorProto.DataType.Name(elem_type).lower()
    return {"float": "fp32", "double": "fp64", "float16": "fp16", "bfloat16": "bf16"}.get(name, name)
