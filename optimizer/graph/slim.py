"""Simplify a graph with onnxslim without losing its interface, its names or its metadata. Runs in a child process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from optimizer.errors import StageError
from optimizer.graph.files import save_model
from optimizer.graph.interface import interface
from optimizer.graph.modules import MODULE
from optimizer.graph.usual_sizes import note_usual_sizes
from optimizer.types import TensorSpec

# What the exporter says of a node's origin in the module; onnxslim drops it. Stack traces hold paths of one machine.
_ORIGIN = (MODULE, "namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes")


def slim(source: str, destination: str, usual: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Write the simplified graph, which notes the usual sizes of its axes; return what became of its nodes.

    Raises: StageError when the result has another interface or opset, or is no valid ONNX.
    """
    import onnxslim

    model = onnx.load(source)
    before, opset = _count(model), _opsets(model)
    expected = interface(model)
    source_nodes = _by_name_and_output(model.graph)
    declared = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in model.graph.output]
    slimmed = onnxslim.slim(model)
    _same_interface(expected, interface(slimmed))
    if not opset.items() <= _opsets(slimmed).items():
        raise StageError(f"onnxslim changed the opset from {opset} to {_opsets(slimmed)}")
    del slimmed.graph.output[:]
    slimmed.graph.output.extend(declared)
    _restore(slimmed.graph, source_nodes)
    _name_nodes(slimmed.graph)
    note_usual_sizes(slimmed, usual or {})
    save_model(slimmed, Path(destination))
    try:
        onnx.checker.check_model(destination)
    except onnx.checker.ValidationError as error:
        raise StageError(f"onnxslim's result is no valid ONNX: {' '.join(str(error).split())[:400]}") from error
    after = _count(slimmed)
    fewer = {op: count - after.get(op, 0) for op, count in before.items() if count > after.get(op, 0)}
    return {"before": sum(before.values()), "after": sum(after.values()), "fewer": fewer}


def _same_interface(before: tuple[tuple[TensorSpec, ...], ...], after: tuple[tuple[TensorSpec, ...], ...]) -> None:
    for kind, expected, found in zip(("inputs", "outputs"), before, after, strict=True):
        if expected != found:
            raise StageError(f"onnxslim changed the {kind} from {_shown(expected)} to {_shown(found)}")


def _shown(specs: tuple[TensorSpec, ...]) -> str:
    return "; ".join(f"{s.name} {s.dtype}[{', '.join(map(str, s.shape))}]" for s in specs) or "none"


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Return the opset of every domain that a node uses."""
    used = {"" if node.domain == "ai.onnx" else node.domain for node in _nodes(model.graph)}
    named = {"" if entry.domain == "ai.onnx" else entry.domain: int(entry.version) for entry in model.opset_import}
    return {domain: version for domain, version in named.items() if domain in used}


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of nested graphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.type == onnx.AttributeProto.GRAPH else ())):
                yield from _nodes(inner)


def _count(model: onnx.ModelProto) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in _nodes(model.graph):
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _by_name_and_output(graph: onnx.GraphProto) -> dict[str, tuple[str, dict[str, str]]]:
    """Return the name and the origin of every node, under its name and under each of its outputs."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for node in _nodes(graph):
        origin = {entry.key: entry.value for entry in node.metadata_props if entry.key in _ORIGIN}
        for key in (*node.output, node.name):
            if key:
                found[key] = node.name, origin
    return found


def _restore(graph: onnx.GraphProto, source: Mapping[str, tuple[str, dict[str, str]]]) -> None:
    """Give a node its name and origin in the source back; onnxslim calls a fused one after its first part's output."""
    for node in _nodes(graph):
        key = next((key for key in (node.name, *node.output) if key in source), None)
        if key is None:
            continue
        name, origin = source[key]
        node.name = name or node.name
        for field in sorted(origin.keys() - {entry.key for entry in node.metadata_props}):  # sorted: same bytes twice
            node.metadata_props.add(key=field, value=origin[field])


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own, after its first output: later stages and engines address nodes by name."""
    taken: set[str] = set()
    for node in _nodes(graph):
        wanted = node.name or f"{node.op_type}_{next((name for name in node.output if name), 'nothing')}"
        name, count = wanted, 1
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        node.name = name
        taken.add(name)
