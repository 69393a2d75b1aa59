"""One scale for tensors that hold the same values: before and behind Concat, MaxPool, Reshape, Transpose, Pad."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optimizer.graph.affine import Bounds
from optimizer.graph.index import GraphIndex

# Operators that move or pick values; a larger step cannot arise in them.
_CARRIES = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Identity", "DepthToSpace"}
    | {"SpaceToDepth", "Split"}
)
# No tensor loses more than one bit for another's range.
_WIDEST = 2.0


@dataclass(frozen=True, slots=True)
class Span:
    """The range that covers several tensors."""

    low: float
    high: float
    magnitude: float

    @classmethod
    def over(cls, bounds: list[Bounds]) -> Span:
        """Cover all of them."""
        return cls(min(b.low for b in bounds), max(b.high for b in bounds), max(b.magnitude for b in bounds))


def share(index: GraphIndex, roots: Mapping[str, str], ranges: Mapping[str, Bounds]) -> dict[str, list[str]]:
    """Return the tensors among `roots` that take one scale, by the name of the first of them.

    Two tensors join where one carries the other's values, or both carry those of a third, and neither range is more
    than twice the other: the engine then writes one integer tensor for all readers. Through Concat all inputs join.
    """
    groups = {tensor: [tensor] for tensor in roots}
    carried: dict[str, str] = {}
    for tensor in roots:
        for above in _sources(index, tensor, roots):
            first = carried.setdefault(above, above if above in roots else tensor)
            a, b = groups[first], groups[tensor]
            if a is not b and _alike([ranges[name] for name in (*a, *b)]):
                a += b
                groups.update(dict.fromkeys(b, a))
    return {group[0]: group for group in groups.values()}


def _sources(index: GraphIndex, tensor: str, roots: Mapping[str, str]) -> Iterator[str]:
    """Yield the tensors whose values this one carries, up to those that are quantized themselves."""
    waiting, seen = [tensor], {tensor}
    while waiting:
        node = index.producers.get(waiting.pop())
        if node is None or (node.op_type not in _CARRIES and node.op_type != "Concat"):
            continue
        for name in node.input if node.op_type == "Concat" else node.input[:1]:
            if name in seen or index.is_constant(name):
                continue
            seen.add(name)
            yield name
            if name not in roots:
                waiting.append(name)


def _alike(bounds: list[Bounds]) -> bool:
    magnitudes = [b.magnitude for b in bounds]
    return max(magnitudes) <= _WIDEST * min(magnitudes)
