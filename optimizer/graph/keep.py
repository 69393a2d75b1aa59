"""What `keep:` of a recipe names: operator types, nodes, or PyTorch modules with everything inside them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import onnx

from optimizer.errors import StageError
from optimizer.graph.index import node_key
from optimizer.graph.modules import module_of, paths

_NEAREST = 2  # of each kind
_SHOWN = 12


def match(keep: Sequence[str], nodes: Iterable[onnx.NodeProto], where: str) -> dict[str, str]:
    """Return the entry of `keep` that names it for every node so named, by node key (see `index.node_key`).

    A module's path keeps what is inside it as well: 'layer1' keeps 'layer1.0.conv1'.
    Raises: StageError naming every entry that names nothing, with the nearest names of each kind.
    """
    named: dict[str, list[str]] = {}
    known: dict[str, set[str]] = {"operator type": set(), "node": set(), "module": set()}
    for node in nodes:
        key = node_key(node)
        around = [*paths(module_of(node))]
        for name in {node.op_type, key, *around}:
            named.setdefault(name, []).append(key)
        known["operator type"].add(node.op_type)
        known["node"].add(key)
        known["module"].update(around)
    unknown = [name for name in dict.fromkeys(keep) if name not in named]
    if unknown:
        what = "; ".join(f"'{name}' is neither an operator type, a node nor a module of the graph" for name in unknown)
        hints = dict.fromkeys(_nearest(name, known) for name in unknown)
        raise StageError(f"keep: {what}", where=where, hint="\n".join(hints))
    return {key: name for name in reversed(keep) for key in named[name]}


def _nearest(name: str, known: Mapping[str, set[str]]) -> str:
    near = [
        f"{found} ({kind})"
        for kind, names in known.items()
        for found in difflib.get_close_matches(name, sorted(names), n=_NEAREST, cutoff=0.5)
    ]
    if near:
        return f"nearest: {', '.join(near)}"
    outer = sorted({path.partition(".")[0] for path in known["module"]})
    modules = f"; modules: {', '.join(outer[:_SHOWN])}" if outer else ""
    return f"operator types: {', '.join(sorted(known['operator type']))}{modules}"
