"""What `keep:` of a recipe names: operator types, nodes, or PyTorch modules with everything inside them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import onnx

from optimizer.errors import StageError
from optimizer.graph.index import node_key
from optimizer.graph.modules import Modules, folded_into, module_of, paths

_Held = TypeVar("_Held")

_NEAREST = 2  # of each kind
_SHOWN = 12
_ELSEWHERE = Modules()
# What a module without nodes of its own does in inference; of other classes the graph does not tell.
_IDLE = ("Dropout", "Identity", "DropPath", "StochasticDepth")


def match(
    keep: Sequence[str], nodes: Iterable[onnx.NodeProto], where: str, modules: Modules = _ELSEWHERE
) -> dict[str, str]:
    """Return the entry of `keep` that names it for every node so named, by node key (see `index.node_key`).

    A module's path keeps what is inside it as well: 'layer1' keeps 'layer1.0.conv1'. `modules` are those of the model
    that the graph was exported from (`modules.modules_of`): what left no node in it is told from a slip. A module that
    is registered under several paths has the nodes of those it is called by, the others stand for them.
    Raises: StageError naming every entry that names nothing, with the nearest names of each kind, or with what holds
    now what the exporter folded.
    """
    named: dict[str, list[str]] = {}
    known: dict[str, set[str]] = {"operator type": set(), "node": set(), "module": set()}
    folded: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        key = node_key(node)
        for name in paths(folded_into(node)):
            folded.setdefault(name, []).append(node)
        around = [*paths(module_of(node))]
        for name in {node.op_type, key, *around}:
            named.setdefault(name, []).append(key)
        known["operator type"].add(node.op_type)
        known["node"].add(key)
        known["module"].update(around)
    for name in [name for name in keep if name not in named]:
        named |= _under_other_paths(name, modules, named)
        folded |= _under_other_paths(name, modules, folded)
    unknown = [name for name in dict.fromkeys(keep) if name not in named]
    if unknown:
        told = [
            _folded(name, folded[name]) if name in folded else _gone(name, modules) or _slip(name, known)
            for name in unknown
        ]
        what = "; ".join(text for text, _ in told)
        raise StageError(f"keep: {what}", where=where, hint="\n".join(dict.fromkeys(hint for _, hint in told)))
    return {key: name for name in reversed(keep) for key in named[name]}


def _under_other_paths(name: str, modules: Modules, known: Mapping[str, list[_Held]]) -> dict[str, list[_Held]]:
    """Return what is known of a module by the other paths that it is registered under, under this one."""
    found = [held for other in modules.other_paths(name) for held in known.get(other, ())]
    return {name: found} if found else {}


def _folded(name: str, nodes: Sequence[onnx.NodeProto]) -> tuple[str, str]:
    """Say which nodes hold a module now, and what to write for them."""
    held = [f"the {node.op_type} of '{module_of(node)}'" for node in nodes[:_NEAREST]]
    more = f" and {len(nodes) - _NEAREST} more" if len(nodes) > _NEAREST else ""
    owners = ", ".join(dict.fromkeys(module_of(node) for node in nodes))
    return (
        f"the module '{name}' is no longer in the graph: it was folded into {', '.join(held)}{more}",
        f"in place of '{name}' write {owners}",
    )


def _gone(name: str, modules: Modules) -> tuple[str, str] | None:
    """Say why a module of the model has no node in the graph; None where the model has no such module."""
    kind = modules.class_of(name)
    if kind is None:
        return None
    idle = kind.startswith(_IDLE)
    why = "it does nothing in inference" if idle else "it was folded into constants or other modules, or never called"
    return (
        f"the module '{name}' ({kind}) left no node in the graph: {why}",
        f"take '{name}' out of keep: nothing is computed for it alone",
    )


def _slip(name: str, known: Mapping[str, set[str]]) -> tuple[str, str]:
    return f"'{name}' is neither an operator type, a node nor a module of the graph", _nearest(name, known)


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
