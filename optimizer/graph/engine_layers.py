"""The layers of an engine joined to its graph: PyTorch modules, and the kernels that only move data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from optimizer.graph.index import node_key
from optimizer.graph.modules import module_of

Row = dict[str, Any]

# A kernel that Myelin generates is named by what it does: '__myl_MulAddRelu_myl0_3'.
_GENERATED = re.compile(r"^__myl_(?P<parts>(?:[A-Z][a-z0-9]*)+)_myl\d+_\d+$")
_MOVES = frozenset({"Move", "Copy", "Tran", "Resh", "Cast", "Repl", "Conc", "Slic", "Perm"})
_MOVING_KINDS = frozenset({"reformat", "copy", "shuffle"})
_BITS = {
    **{"Float": 32, "Int32": 32, "Half": 16, "BFloat16": 16, "Int64": 64},
    **{"Int8": 8, "UInt8": 8, "FP8": 8, "Bool": 8, "Int4": 4, "FP4": 4},
}


def joined(rows: Iterable[Mapping[str, Any]], model: onnx.ModelProto, sizes: Mapping[str, int]) -> list[Row]:
    """Return the rows with the PyTorch modules behind each and, of those that only move data, why and how much.

    `sizes` has a size for every dynamic axis of the profile, the usual one. `reformat` is None where a kernel
    computes, else {why: type, layout or copy; bytes: read and written, None where a shape is not known}.
    """
    modules = {node_key(node): module_of(node) for node in model.graph.node}
    usual = next(iter(sizes.values())) if len(sizes) == 1 else None
    return [
        {
            **row,
            "modules": list(dict.fromkeys(filter(None, (modules.get(name, "") for name in row["onnx_nodes"])))),
            "reformat": reformat(row, usual),
        }
        for row in rows
    ]


def reformat(row: Mapping[str, Any], usual: int | None = None) -> dict[str, Any] | None:
    """Return why a layer moves data without computing, and how many bytes; None where it computes.

    `usual` is the size of the one dynamic axis; with several no shape tells which -1 is which.
    """
    if not _only_moves(row):
        return None
    read, written = ({(t["type"], t["format"]) for t in row[side]} for side in ("inputs", "outputs"))
    types = [{kind for kind, _ in side} for side in (read, written)]
    why = "type" if types[0] != types[1] else "layout" if read != written else "copy"
    sizes = [_bytes(tensor, usual) for side in ("inputs", "outputs") for tensor in row[side]]
    known = [size for size in sizes if size is not None]
    return {"why": why, "bytes": sum(known) if sizes and len(known) == len(sizes) else None}


def reformats(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many of joined rows only move data, how many of these no ONNX node asks for, and the bytes.

    `bytes` is None where one of them is not known.
    """
    moving = [row for row in rows if row.get("reformat")]
    sizes = [row["reformat"]["bytes"] for row in moving]
    return {
        "layers": len(moving),
        "own": sum(not row["onnx_nodes"] for row in moving),
        "bytes": None if None in sizes else sum(sizes),
        "tensors": [t["tensor"] for row in moving for t in row["inputs"]],
    }


def _only_moves(row: Mapping[str, Any]) -> bool:
    if str(row["kind"]).lower() in _MOVING_KINDS:
        return True
    found = _GENERATED.match(str(row["name"]))
    return bool(found) and set(re.findall(r"[A-Z][a-z0-9]*", found["parts"] if found else "")) <= _MOVES


def _bytes(tensor: Mapping[str, Any], usual: int | None) -> int | None:
    """Return the bytes of a tensor at the usual size; None where its shape or type is not known."""
    shape, bits = tensor.get("shape"), _BITS.get(tensor["type"])
    if shape is None or bits is None or (-1 in shape and usual is None):
        return None
    count = 1
    for size in shape:
        count *= usual if size == -1 and usual is not None else size
    return (count * bits + 7) // 8
