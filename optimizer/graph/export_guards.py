"""What the exporter of torch asserts about sizes without saying so."""

from __future__ import annotations

import operator
from typing import Any

from optimizer.checkpoint import LoadedModule
from optimizer.errors import StageError


def check_guards(program: Any, loaded: LoadedModule) -> None:
    """Refuse a graph that holds for one size of a named axis only.

    Where a size is fixed behind some arithmetic the exporter keeps the axis dynamic, and of its own assertion leaves a
    comparison that nothing reads. One that is false for the example (is a tensor empty?) asserts nothing.
    `program` is torch's ExportedProgram.
    Raises: StageError naming the axes.
    """
    fed = set(program.graph_signature.user_inputs)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in fed]
    inputs = sorted(loaded.inputs, key=lambda spec: spec.name in loaded.keywords)  # positional ones come first
    by_node = dict(zip(placeholders, inputs, strict=True))
    for node in program.graph.nodes:
        if node.target is not operator.eq or node.users or not _holds(node):
            continue
        sizes = [n for n in _ancestors(node) if "sym_size" in str(n.target) and n.args[0] in by_node]
        named = {(by_node[n.args[0]].name, by_node[n.args[0]].shape[n.args[1]]) for n in sizes}
        fixed = ", ".join(f"'{axis}' of input '{name}'" for name, axis in sorted(named) if isinstance(axis, str))
        if fixed:
            raise StageError(
                f"an axis that the recipe names dynamic is fixed by the model: {fixed} has one size only",
                where=f"export of {type(loaded.module).__name__}",
                hint="Write that axis as a number in the recipe's shape, or make forward() independent of it.",
            )


def _holds(comparison: Any) -> bool:
    """Tell whether a size is compared with the number that it has for the example."""
    size, number = comparison.args
    symbol = getattr(getattr(size, "meta", {}).get("val"), "node", None)
    return isinstance(number, int) and symbol is not None and symbol.hint == number


def _ancestors(node: Any) -> list[Any]:
    """Everything that a node of the exported graph is computed from."""
    found: dict[Any, None] = {}
    waiting = list(node.all_input_nodes)
    while waiting:
        current = waiting.pop()
        if current not in found:
            found[current] = None
            waiting += current.all_input_nodes
    return list(found)
