"""Which tensor of a graph is the first that differs from what the graph was made from: another graph, or a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optimizer.errors import OptimizerError
from optimizer.graph.blame import Blame, Sides
from optimizer.graph.index import node_key
from optimizer.graph.modules import module_of, paths
from optimizer.graph.prefix import Cuts
from optimizer.runtime.session import Array, Feed

# Returns what the parent has for these tensors of the child.
Known = Callable[[Sequence[str]], Mapping[str, Array]]

_AT_ONCE = 16  # tensors read out in one run: all of a large network's would not fit in memory
_TRIED = 24  # tensors that differ, among which the cause is sought
_SHOWN = 6


def unlike_the_graph(parent: Cuts, child: Cuts, feed: Feed, sides: Sides) -> Blame | None:
    """Find where a graph leaves the one it was made from, by the tensors that both have under one name.

    `reference` runs the parent, `suspect` the child. None where no shared tensor differs.
    """

    def known(names: Sequence[str]) -> Mapping[str, Array]:
        return sides.reference(parent.write(parent.ending_in(names), sides.folder / "parent"), feed)

    shared = [name for name in child.producer if name in parent.producer and parent.can_leave([name])]
    return _first(child, shared, known, feed, sides)


def unlike_the_module(
    outputs: Mapping[str, Array], modules: Mapping[str, Array], child: Cuts, feed: Feed, sides: Sides
) -> Blame | None:
    """Find where an exported graph leaves its PyTorch module, by the one tensor that leaves each submodule.

    `outputs` are the module's by name, `modules` those of its submodules by path; `suspect` runs the graph.
    None where no submodule's output differs, or none of those that do is the cause: the exporter fuses modules.
    """
    leaving = dict(_leaving(child, modules)) | {name: name for name in child.outputs}
    values = {**modules, **outputs}

    def known(names: Sequence[str]) -> Mapping[str, Array]:
        return {name: values[leaving[name]] for name in names}

    found = _first(child, [name for name in child.producer if name in leaving], known, feed, sides)
    return found if found is not None and _UNMENDED not in found.said else None


_UNMENDED = "putting the parent's value in its place does not mend the outputs: other nodes differ as well"


def _leaving(child: Cuts, modules: Mapping[str, Array]) -> list[tuple[str, str]]:
    """Return tensor and module for each module that a single tensor leaves; of nested ones the inner comes last."""
    inside = [frozenset(paths(module_of(node))) for node in child.nodes]
    readers: dict[str, list[int]] = {}
    for i, names in enumerate(child.reads):
        for name in names:
            readers.setdefault(name, []).append(i)
    found = []
    for module in sorted(modules, key=len):
        made = [name for name, i in child.producer.items() if module in inside[i]]
        out = [n for n in made if n in child.outputs or any(module not in inside[i] for i in readers.get(n, ()))]
        if len(out) == 1:
            found.append((out[0], module))
    return found


def _first(child: Cuts, shared: Sequence[str], known: Known, feed: Feed, sides: Sides) -> Blame | None:
    """Return the first tensor that differs and is the cause.

    A stage may change inner tensors on purpose (scales moved from one layer to another), so a tensor is blamed when
    the child's outputs come right with the parent's value in its place.
    """
    leading = set(child.ancestors(child.outputs))
    shared = [name for name in shared if child.producer[name] in leading and child.can_leave([name])]
    like: set[str] = set()
    unlike: list[str] = []
    for begin in range(0, len(shared), _AT_ONCE):
        some = shared[begin : begin + _AT_ONCE]
        wrong = sides.wrong(known(some), _as_far_as_it_goes(child, some, feed, sides))
        unlike += [name for name in some if name in wrong]
        like |= set(some) - set(wrong)
        if len(unlike) >= _TRIED:
            break
    if not unlike:
        return None
    confirmed = next((name for name in unlike[:_TRIED] if _is_cause(child, known, feed, sides, name)), None)
    name = confirmed or unlike[0]
    region = [child.nodes[i] for i in child.ancestors([name], frozenset(like))]
    node = child.nodes[child.producer[name]]
    said = [f"tensor '{name}' has another value than in the parent, what leads to it has the same"]
    if confirmed and name not in child.outputs:
        said.append("with the parent's value in its place the outputs are right")
    elif not confirmed:
        said.append(_UNMENDED)
    if len(region) > 1:
        shown = ", ".join(f"'{node_key(one)}' ({one.op_type})" for one in region[-_SHOWN:])
        said.append(f"between it and the tensors that agree lie {len(region)} nodes: {shown}")
    return Blame(
        node_key(node), node.op_type, module_of(node), name, tuple(node_key(one) for one in region), tuple(said)
    )


def _as_far_as_it_goes(child: Cuts, names: Sequence[str], feed: Feed, sides: Sides) -> Mapping[str, Array]:
    """Return the child's tensors, those that it can compute: where the fault stops it, each is asked for by itself."""
    try:
        return sides.suspect(child.write(child.ending_in(names), sides.folder / "child"), feed)
    except OptimizerError:
        if len(names) == 1:
            return {}
        parts = [_as_far_as_it_goes(child, [name], feed, sides) for name in names]
        return {name: array for part in parts for name, array in part.items()}


def _is_cause(child: Cuts, known: Known, feed: Feed, sides: Sides, name: str) -> bool:
    """Tell whether the child's outputs are the parent's once this tensor has the parent's value."""
    if name in child.outputs:
        return True
    value = known([name])[name]
    behind = child.ancestors(child.outputs, frozenset([name]))
    behind = [i for i in behind if name not in child.nodes[i].output]
    if name not in {read for i in behind for read in child.reads[i]}:
        return False
    value = value.astype(child.dtype(name) or value.dtype)
    mended = child.part(behind, child.outputs, {name: value})
    try:
        found = sides.suspect(child.write(mended, sides.folder / "mended"), {**feed, name: value})
    except OptimizerError:
        return False
    return not sides.wrong(known(child.outputs), found)
