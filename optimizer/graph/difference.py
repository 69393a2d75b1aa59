"""What differs between two inspected files of one kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from optimizer.errors import UsageError
from optimizer.graph.engine_difference import PARTS as ENGINE_PARTS
from optimizer.graph.engine_difference import engine_difference

Document = Mapping[str, Any]


def difference(first: Document, second: Document) -> dict[str, Any]:
    """Return what differs, under the names of the summary's parts; empty when nothing does.

    A part that is a mapping comes as {only_first, only_second, changed: {name: [first, second]}}, any other as a pair.
    Two engines: `engine_difference`, and the other parts of their receipts.
    Raises: UsageError when the two are of different kinds.
    """
    if first["kind"] != second["kind"]:
        raise UsageError(
            f"{first['path']} is {_article(first['kind'])} and {second['path']} {_article(second['kind'])}",
            hint="Give two files of one kind.",
        )
    whole = engine_difference(first, second) if first["kind"] == "engine" else {}
    told = ENGINE_PARTS if first["kind"] == "engine" else frozenset[str]()
    first, second = _named_by_module(first, second), _named_by_module(second, first)
    parts = {name: _PARTS.get((first["kind"], name), _plain) for name in (*first, *(set(second) - set(first)))}
    found = {
        name: changed
        for name, part in parts.items()
        if name not in _ABOUT_THE_FILE and name not in told and (changed := part(first.get(name), second.get(name)))
    }
    return whole | dict(sorted(found.items(), key=lambda item: list(parts).index(item[0])))


# Not what is in a file, but where it lies and what could be read beside it.
_ABOUT_THE_FILE = ("kind", "path", "layers_from")


def _article(kind: str) -> str:
    return {"onnx": "an ONNX graph", "engine": "an engine", "calibration": "a calibration table"}[kind]


def _plain(first: Any, second: Any) -> Any:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return _mappings(first, second)
    return None if first == second else [first, second]


def _mappings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    changed = {name: [first[name], second[name]] for name in first if name in second and first[name] != second[name]}
    parts = {
        "only_first": [name for name in first if name not in second],
        "only_second": [name for name in second if name not in first],
        "changed": changed,
    }
    return {name: part for name, part in parts.items() if part}


def _named_by_module(document: Document, other: Document) -> Document:
    """Return the document with its layers, the widest first, under the names that a person knows them by.

    That is the PyTorch module where it has one layer on both sides: nodes are named anew by every export.
    """
    if document["kind"] != "onnx":
        return document
    uses = [Counter(row["module"] for row in side["layers"]) for side in (document, other)]
    rows = sorted(document["layers"], key=lambda row: -row["macs"])
    named = {
        row["module"]
        if row["module"] and all(count[row["module"]] <= 1 for count in uses)
        else " ".join(filter(None, (row["node"], f"({row['module']})" if row["module"] else ""))): row
        for row in rows
    }
    # What a layer computes in is told there, once.
    told = {row["node"] for row in rows}
    rest = [n for n in document["nodes"] if n["name"] not in told]
    return {**document, "nodes": rest, "layers": named}


def _precisions(first: Any, second: Any) -> dict[str, Any]:
    """Compare layers: operator, the precision that they get, and why it is not the one asked for."""
    return _mappings(*({name: _words(row) for name, row in (side or {}).items()} for side in (first, second)))


def _words(row: Mapping[str, Any]) -> str:
    return f"{row['operator']} {row['delivered']}" + (f" ({row['reason']})" if row["reason"] else "")


def _nodes(first: Any, second: Any) -> dict[str, Any]:
    """Compare nodes by name: operator and precision."""
    return _mappings(*({n["name"]: f"{n['operator']} {n['precision']}" for n in side} for side in (first, second)))


def _tensors(first: Any, second: Any) -> dict[str, Any]:
    return _mappings(*({spec["name"]: spec for spec in side} for side in (first, second)))


_PARTS: dict[tuple[str, str], Callable[[Any, Any], Any]] = {
    ("onnx", "nodes"): _nodes,
    ("onnx", "layers"): _precisions,
    ("onnx", "inputs"): _tensors,
    ("onnx", "outputs"): _tensors,
    ("engine", "inputs"): _tensors,
    ("engine", "outputs"): _tensors,
}
