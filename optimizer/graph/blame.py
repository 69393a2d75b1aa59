"""Which node is to blame where two executions of a graph, or a graph and what it was made from, disagree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.errors import OptimizerError
from optimizer.graph.index import node_key
from optimizer.graph.modules import module_of
from optimizer.graph.prefix import Cuts
from optimizer.runtime.session import Array, Feed

# Builds an ONNX file with one runtime and runs it once.
Execute = Callable[[Path, Feed], Mapping[str, Array]]
Unlike = Callable[[Array, Array], bool]

_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Blame:
    """The first node whose result is wrong. `region`: the fewest nodes that show the fault by themselves, it last."""

    node: str
    operator: str
    module: str  # of PyTorch; empty where the graph does not know it
    tensor: str
    region: tuple[str, ...]
    said: tuple[str, ...] = ()
    part: Path | None = None  # the region as a model of its own
    feed: Feed = field(default_factory=dict)  # what the region reads
    expected: Mapping[str, Array] = field(default_factory=dict)
    found: Mapping[str, Array] = field(default_factory=dict)

    def sentence(self) -> str:
        """Name the node, and say how it was found."""
        of = f", module '{self.module}'" if self.module else ""
        return "; ".join((f"node '{self.node}' ({self.operator}{of}) is the first that differs", *self.said))


@dataclass(frozen=True, slots=True)
class Sides:
    """Two executions, and when their results count as unlike; `folder` is where parts of the graph are written."""

    reference: Execute
    suspect: Execute
    unlike: Unlike
    folder: Path

    def wrong(self, expected: Mapping[str, Array], found: Mapping[str, Array]) -> list[str]:
        """Return the outputs that are unlike, or missing."""
        return [name for name, array in expected.items() if name not in found or self.unlike(array, found[name])]


def first_wrong_node(cuts: Cuts, feed: Feed, sides: Sides) -> Blame | None:
    """Find the node at which an execution leaves the reference: log2(n) prefixes of the graph, each built by itself.

    A prefix is the first nodes of the graph, its outputs are all that later nodes read of them. The node is the last of
    the shortest prefix found that differs while the prefix without it does not. None where even all nodes agree.
    """
    whole = len(cuts.nodes)
    places = [n for n in range(1, whole + 1) if n == whole or cuts.can_leave(cuts.frontier(n))]
    built: dict[int, list[str]] = {}

    def differs(count: int, failing: bool) -> bool:
        path = cuts.write(cuts.prefix(count), sides.folder / f"prefix{count}")
        expected = sides.reference(path, feed)
        try:
            found = sides.suspect(path, feed)
        except OptimizerError:
            if not failing:
                raise
            found = {}
        built[count] = sides.wrong(expected, found)
        return bool(built[count])

    try:
        failing = False
        if not differs(whole, failing):
            return None
    except OptimizerError:
        failing = True  # it does not compute something else, it stops: then that is the fault which is looked for
        differs(whole, failing)
    good, bad = -1, len(places) - 1  # positions in `places`; before the first all agree
    refused: list[str] = []
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            if differs(places[middle], failing):
                bad = middle
            else:
                good = middle
        except OptimizerError as error:  # a prefix that the runtime does not take says nothing: leave it out
            refused.append(f"the prefix of {places[middle]} nodes cannot be built: {error.what.splitlines()[0]}")
            del places[middle]
            bad -= 1
    said = [f"{len(built)} prefixes of {whole} nodes were built, each by itself", *refused[:1]]
    if good < 0 < len(places) - 1:
        said.append("every prefix differs, from the first on: it is the node named, or the session itself")
    start, stop = places[good] if good >= 0 else 0, places[bad]
    return _narrowed(cuts, feed, sides, (start, stop, built[stop]), said)


def _narrowed(cuts: Cuts, feed: Feed, sides: Sides, found: tuple[int, int, list[str]], said: list[str]) -> Blame:
    """Take the last node of the prefix by itself, then with ever more nodes before it, until the fault shows."""
    start, stop, wrong = found
    between = range(start, stop)
    made = [name for name in wrong if cuts.producer.get(name, -1) in between]
    # Where several nodes lie between two cuts, the one that makes a wrong tensor. An older tensor that only the longer
    # prefix gets wrong is the work of a fusion, which the last node completed.
    last = cuts.producer[made[0]] if made else stop - 1
    node = cuts.nodes[last]
    ends = made or [*wrong, *filter(None, node.output)]
    reached = cuts.ancestors(ends)
    grown = _smallest_region(cuts, feed, sides, reached, ends)
    region = [cuts.nodes[i] for i in (grown.chosen if grown else reached)]
    names = tuple(node_key(one) for one in region)
    if len(between) > 1:
        said.append(f"between two places where the graph can be cut lie {len(between)} nodes")
    if grown is None:
        said.append("no part of it shows the fault by itself: cutting makes it vanish, so it lies in what is fused")
    elif len(names) > 1:
        shown = ", ".join(f"'{name}'" for name in names[-_SHOWN:])
        more = f" and {len(names) - _SHOWN} before" if len(names) > _SHOWN else ""
        said.append(
            f"alone it is right: the fault appears only together with the nodes before it, as a runtime fuses them "
            f"(region: {shown}{more})"
        )
    else:
        said.append("alone, on the reference's values, it is wrong as well")
    return Blame(
        node_key(node),
        node.op_type,
        module_of(node),
        ends[0],
        names,
        tuple(said),
        *((grown.path, grown.feed, grown.expected, grown.found) if grown else ()),
    )


@dataclass(frozen=True, slots=True)
class _Region:
    chosen: list[int]
    path: Path
    feed: Feed
    expected: Mapping[str, Array]
    found: Mapping[str, Array]


def _smallest_region(
    cuts: Cuts, feed: Feed, sides: Sides, reached: Sequence[int], outputs: Sequence[str]
) -> _Region | None:
    """Return the fewest of the last nodes before `outputs` that differ by themselves: doubled, then halved."""

    def attempt(size: int) -> _Region | None:
        chosen = list(reached[-size:])
        return _region(cuts, feed, sides, chosen, outputs)

    size, failed = 1, 0
    found = attempt(size)
    while found is None and size < len(reached):
        failed, size = size, min(2 * size, len(reached))
        found = attempt(size)
    while found is not None and size - failed > 1:
        middle = (size + failed) // 2
        smaller = attempt(middle)
        if smaller is None:
            failed = middle
        else:
            size, found = middle, smaller
    return found


def _region(cuts: Cuts, feed: Feed, sides: Sides, chosen: list[int], outputs: Sequence[str]) -> _Region | None:
    """Run some nodes by themselves on the reference's values; None where both agree or it cannot be done."""
    inside = {name for i in chosen for name in cuts.nodes[i].output}
    shown = [name for name in outputs if name in inside]
    wanted = cuts.open_inputs(chosen)
    if not shown or (wanted and not cuts.can_leave(wanted)):
        return None
    name = f"{chosen[0]}-{chosen[-1]}"
    folder = sides.folder / f"region{name}"
    try:
        given = (
            dict(sides.reference(cuts.write(cuts.ending_in(wanted), sides.folder / f"before{name}"), feed))
            if wanted
            else {}
        )
        path = cuts.write(cuts.part(chosen, shown, given), folder)
        read = {name: array for name, array in {**feed, **given}.items() if name in _inputs(cuts, chosen)}
        expected = sides.reference(path, read)
    except OptimizerError:
        return None
    try:
        found = sides.suspect(path, read)
    except OptimizerError:
        found = {}
    if not sides.wrong(expected, found):
        return None
    return _Region(chosen, path, read, expected, found)


def _inputs(cuts: Cuts, chosen: Sequence[int]) -> set[str]:
    inside = {name for i in chosen for name in cuts.nodes[i].output}
    return {name for i in chosen for name in cuts.reads[i] if name not in inside and name not in cuts.weights}
