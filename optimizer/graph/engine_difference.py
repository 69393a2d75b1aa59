"""What differs between two engines, joined by the ONNX nodes behind their kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from optimizer.graph.engine_layers import reformat
from optimizer.graph.engine_receipt import NAMES, WIDTHS

Document = Mapping[str, Any]

_FLOATS = frozenset({"Half", "BFloat16", "Float"})  # types of arithmetic; 8-bit floats are stored, as integers are

# The parts of an engine's summary that are compared here, and not one by one.
PARTS = frozenset(
    {
        *("layers", "nodes", "graph_nodes", "precision", "precision_notes", "executed", "reformats"),
        *("bytes", "seconds", "onnx_sha256", "compute_capability_receipts", "graph", "graph_types"),
    }
)


def engine_difference(first: Document, second: Document) -> dict[str, Any]:
    """Return totals of both and the layers that differ, those with most work first; empty when nothing does.

    A layer is a node that multiplies, under the name of its module where that is the name of one layer on both sides;
    `others` are the nodes beside these. Pairs are [first, second]. Time is that of all kernels a node is part of.
    """
    sides = _Side(first, second), _Side(second, first)
    common = [key for key in sides[0].nodes if key in sides[1].nodes]
    found = [entry for key in common if (entry := _compare(key, *sides, set(common)))]
    lists = {
        "layers": sorted((e for e in found if e["macs"]), key=lambda e: -e["macs"]),
        "others": [e for e in found if not e["macs"]],
        "only_first": sides[0].beside(common),
        "only_second": sides[1].beside(common),
    }
    both = [side.totals() for side in sides]
    totals = {name: [side[name] for side in both] for name in both[0]}
    if not any(lists.values()) and all(pair[0] == pair[1] for pair in totals.values()):
        return {}
    return {"totals": totals, **{name: part for name, part in lists.items() if part}}


class _Side:
    """One engine by the nodes of its graph: their kernels, and the name under which the other engine has them."""

    def __init__(self, document: Document, other: Document) -> None:
        self.document = document
        self.kernels: list[Document] = list(document.get("layers", ()))
        self._known: dict[str, Document] = {row["node"]: row for row in document.get("nodes", ())}
        uses = [Counter(row["module"] for row in side.get("nodes", ())) for side in (document, other)]
        self._keys = {
            node: row["module"] if row["module"] and all(use[row["module"]] == 1 for use in uses) else node
            for node, row in self._known.items()
        }
        self._operators: Mapping[str, str] = document.get("graph_nodes", {})
        self._executed: Mapping[str, str] = document.get("executed", {})  # of use where the graph is not at hand
        self.nodes: dict[str, list[Document]] = {}
        self.names: dict[str, str] = {}
        for kernel in self.kernels:
            for name in dict.fromkeys(kernel["onnx_nodes"]):
                self.nodes.setdefault(self.key(name), []).append(kernel)
                self.names[self.key(name)] = name

    def key(self, name: str) -> str:
        return self._keys.get(name, name)

    def row(self, key: str) -> Document:
        """The precision row of a node that multiplies; empty of any other."""
        return self._known.get(self.names[key], {})

    def operator(self, key: str) -> str:
        return str(self.row(key).get("operator") or self._operators.get(self.names[key], ""))

    def precision(self, key: str) -> str:
        """What a node computes in; of one that does not multiply, what its kernels tell."""
        kind = self.row(key).get("delivered") or self._executed.get(self.names[key])
        if kind:
            return str(kind)
        kernels = self.nodes[key]
        stated = self.document.get("graph_types", {}).get(self.names[key])
        # The network is strongly typed: which of the floats in a kernel is a node's own, its graph says.
        if stated in {NAMES[kind] for kernel in kernels for side in _held(kernel) for kind in side & _FLOATS}:
            return str(stated)
        return "/".join(_computed(kernels)) or "-"

    def partners(self, key: str) -> set[str]:
        """The other nodes that share a kernel with this one."""
        return {self.key(name) for kernel in self.nodes[key] for name in kernel["onnx_nodes"]} - {key}

    def beside(self, common: Iterable[str]) -> list[dict[str, str]]:
        """The nodes that the other engine has not: Q/DQ and Casts, mostly."""
        shared = set(common)
        return [{"name": key, "operator": self.operator(key)} for key in self.nodes if key not in shared]

    def totals(self) -> dict[str, Any]:
        moving = [found for kernel in self.kernels if (found := _moved(kernel))]
        sizes = [entry["bytes"] for entry in moving]
        return {
            "bytes": self.document.get("bytes"),
            "precision": self.document.get("precision", {}),
            "kernels": len(self.kernels),
            "reformats": len(moving),
            "reformat_bytes": None if None in sizes else sum(sizes),
            "time_ms": _time(self.kernels),
        }


def _compare(key: str, first: _Side, second: _Side, common: set[str]) -> dict[str, Any] | None:
    """Return what differs at a node that both engines have; None when nothing does.

    Numeric: a difference in time alone is no difference between engines, but noise or clocks: it is told, not listed.
    """
    sides = (first, second)
    precision = [side.precision(key) for side in sides]
    kernels = [[str(kernel["kind"]) for kernel in side.nodes[key]] for side in sides]
    # A node that only one graph has is listed by itself.
    fused = [side.partners(key) & common for side in sides]
    if precision[0] == precision[1] and kernels[0] == kernels[1] and fused[0] == fused[1]:
        return None
    row = first.row(key) or second.row(key)
    total = sum(r["macs"] for r in first.document.get("nodes", ()))
    found: dict[str, Any] = {
        "name": key,
        "operator": first.operator(key),
        "macs": int(row.get("macs", 0)),
        "share": row["macs"] / total if row and total else 0.0,
        "precision": precision,
        "kernels": kernels,
        "fused_only_first": sorted(fused[0] - fused[1]),
        "fused_only_second": sorted(fused[1] - fused[0]),
    }
    times = [_time(side.nodes[key]) for side in sides]
    return found | ({"time_ms": times} if None not in times else {})


def _moved(kernel: Document) -> dict[str, Any] | None:
    """Return what the receipt says; of receipts that say nothing, what the row itself shows."""
    found: dict[str, Any] | None = kernel["reformat"] if "reformat" in kernel else reformat(kernel)
    return found


def _time(kernels: Iterable[Document]) -> float | None:
    times = [kernel.get("time_ms") for kernel in kernels]
    known = [float(time) for time in times if time is not None]
    return sum(known) if known and len(known) == len(times) else None


def _held(kernel: Document) -> list[set[str]]:
    """Return the types of what a kernel writes, of what it reads, and of its constants."""
    return [{tensor["type"] for tensor in kernel.get(side, ())} for side in ("outputs", "inputs", "constants")]


def _computed(kernels: Iterable[Document]) -> list[str]:
    """Return the types in which kernels compute what is fused into them, narrow before wide.

    A kernel that writes 8 bits may quantize at its end alone, and one that multiplies 8 bits adds and activates after
    scaling its sums: where a kernel holds any float, its other work is done in that. It moves or compares 8 bits as
    they are only where it holds nothing else, as a pooling of int8.
    """
    found: set[str] = set()
    for kernel in kernels:
        sides = _held(kernel)
        found |= next((floats for side in sides if (floats := side & _FLOATS)), sides[0])
    known = sorted((kind for kind in found if kind in NAMES), key=WIDTHS.index)
    return [*(NAMES[kind] for kind in known), *sorted(kind.lower() for kind in found if kind not in NAMES)]
