"""Word what TensorRT refuses: every node at once, with its operator, its PyTorch module and what mends it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from optimizer.errors import StageError
from optimizer.graph.index import node_key, subgraphs
from optimizer.graph.modules import module_of
from optimizer.graph.rewrites import rewrite_for
from optimizer.graph.shapes import TensorType, infer

_SHOWN = 20  # refused nodes listed by name
_MENDED = 8  # operators listed with what mends them
_ROUNDS = 32  # parses; each finds at least one node more
_FOREIGN = re.compile(r"ForeignNode\[(?P<first>.*?)\.\.\.(?P<last>.*?)\]")
_CONSTANT = re.compile(r"\[Constant\]$")


@dataclass(frozen=True, slots=True)
class Refused:
    """A node that the library refuses. `reason` is told to people, `said` is the library's own text."""

    node: str
    operator: str
    domain: str
    module: str
    reason: str
    said: str

    def __str__(self) -> str:
        where = f", module {self.module}" if self.module else ""
        return f"node '{self.node}' ({self.operator or 'the graph'}{where}): {self.reason}"


def parse_failure(parser: Any, package: str, version: str, source: Path) -> StageError:
    """Return the error of a parse that failed: all nodes that the parser refuses, and what mends each.

    Of what it reads node by node (not its table of operators) it reports the first alone; so the graph is parsed
    again without the nodes known to fail, until nothing more does. `parser` is the one that failed.
    """
    model = onnx.load(source, load_external_data=False)
    found = [refused(parser.get_error(index), model.graph) for index in range(parser.num_errors)]
    found, unseen = _all(found, model, package, source)
    lines = list(dict.fromkeys(map(str, found)))
    shown = lines[:_SHOWN]
    if len(lines) > _SHOWN:
        operators = sorted({item.operator for item in found[_SHOWN:]})
        shown.append(f"and {len(lines) - _SHOWN} more ({', '.join(operators)})")
    if unseen:
        shown.append(unseen)
    advice = "Rewrite these operators in the model, or leave this target out for it."
    one = len(lines) == 1
    return StageError(
        f"{package} {version} cannot parse {len(lines)} node{'' if one else 's'}:",
        hint="\n".join([*shown, *mended(found), advice]),
    )


def refused(error: Any, graph: onnx.GraphProto) -> Refused:
    """Return what one error of the parser says of its node."""
    operator, name, said = error.node_operator(), error.node_name(), " ".join(error.desc().split())
    node = _node(graph, name, operator, error.node())
    code = error.code().name
    if code == "UNSUPPORTED_NODE" and said in ("false", ""):
        reason = "operator not supported"
    elif "creator" in said and "lugin" in said:  # the parser's last resort is a plugin of that name
        reason = "operator not supported (no plugin of that name either)"
    else:
        # Before the colon stands the line of C++ that failed.
        text = re.sub(r"^Assertion failed: .*?: (?=[A-Z])", "", said)
        reason = f"{text[:200]} ({code})"
    if node is None:
        return Refused(name, operator, "", "", reason, said)
    return Refused(node_key(node), operator or node.op_type, node.domain, module_of(node), reason, said)


def mended(found: Iterable[Refused]) -> list[str]:
    """Return a line per operator that has a known rewrite, each once."""
    known: dict[str, list[str]] = {}
    for item in found:
        rewrite = rewrite_for(item.operator, item.domain, item.said)
        if rewrite and item.operator not in known.setdefault(rewrite, []):
            known[rewrite].append(item.operator)
    lines = [f"{', '.join(operators)}: {rewrite}" for rewrite, operators in known.items()]
    return lines[:_MENDED] + ([f"and {len(lines) - _MENDED} more rewrites"] if len(lines) > _MENDED else [])


def build_failure(text: str, source: Path) -> tuple[str, ...]:
    """Return a line for each ONNX node that a builder's error names, its module with it, and what mends them.

    A fused node is named by its parts ('conv + relu') or by its first and last ('ForeignNode[a...b]'): then all
    between these two in the graph's order are meant, of which the ends and the operators are told.
    """
    model = onnx.load(source, load_external_data=False)
    found = [Refused(node_key(n), n.op_type, n.domain, module_of(n), "", text) for n in nodes_named(text, model)]
    if not found:
        return ()
    ends = found if len(found) <= 3 else [found[0], found[-1]]
    lines = [str(item).removesuffix(": ") for item in ends]
    if len(found) > len(ends):
        operators = ", ".join(sorted({item.operator for item in found}))
        lines = [f"{lines[0]} to {lines[1]}: {len(found)} nodes ({operators})"]
    return (*lines, *mended(found))


def nodes_named(text: str, model: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    """Return the nodes of the main graph that a message of the builder names, in the graph's order."""
    nodes = list(model.graph.node)
    places = {node_key(node): place for place, node in enumerate(nodes)}
    found: set[int] = set()
    for match in _FOREIGN.finditer(text):
        ends = [_places(match[side], places) for side in ("first", "last")]
        if all(ends):
            found |= set(range(min(ends[0]), max(ends[1]) + 1))
    # Longest first, so that 'conv' is not found in 'conv_1'.
    rest = _FOREIGN.sub(" ", text)
    for name in sorted(places, key=len, reverse=True):
        spelled = re.compile(rf"(?<![\w./]){re.escape(name)}(?![\w./]*[\w/])")
        if len(name) > 1 and spelled.search(rest):
            found.add(places[name])
            rest = spelled.sub(" ", rest)
    return tuple(nodes[place] for place in sorted(found))


def _places(names: str, places: dict[str, int]) -> list[int]:
    """Return where the parts of one end stand: 'a + b', or a constant that a node is folded into."""
    parts = (_CONSTANT.sub("", part.strip()) for part in names.split(" + "))
    return [places[part] for part in parts if part in places]


def _node(graph: onnx.GraphProto, name: str, operator: str, position: int) -> onnx.NodeProto | None:
    """Return the node of an error: by its place in the graph, else by its name, in bodies too."""
    nodes = graph.node
    if 0 <= position < len(nodes) and nodes[position].op_type == operator and nodes[position].name in (name, ""):
        return nodes[position]
    return next((node for node in _everywhere(graph) if name and node.name == name), None)


def _everywhere(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from _everywhere(body)


def _all(found: list[Refused], model: onnx.ModelProto, package: str, source: Path) -> tuple[list[Refused], str]:
    """Return what every parse refuses, and which part of the graph none of them has seen."""
    import importlib

    trt = importlib.import_module(package)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    # As build_engine does: only TensorRT 10 has another kind of network.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    rest = _Rest(model)
    for _ in range(_ROUNDS):
        if not rest.cut({item.node for item in found}):
            return found, ""
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, logger)
        if not rest.model.graph.node or parser.parse(rest.model.SerializeToString(), str(source)):
            break
        errors = [refused(parser.get_error(index), rest.model.graph) for index in range(parser.num_errors)]
        known = {item.node for item in found}
        more = [item for item in errors if item.node not in known]
        if not more:  # said of the graph, not of a node
            break
        found += more
    else:
        return found, f"and perhaps others: the search ended after {_ROUNDS} parses"
    lacked = rest.dropped(parser)
    number = len(rest.unseen) - len(lacked)
    said = f"{number} node{'s' * (number > 1)} behind these cannot be judged: the shapes between them are not known"
    return found + lacked, said if number else ""


class _Rest:
    """What is left of a graph without its refused nodes: their outputs become inputs, where the types are known."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self._types = _types(model)
        self.unseen: list[onnx.NodeProto] = []

    def cut(self, names: set[str]) -> bool:
        """Take the named nodes out; False when none of them is there."""
        graph = self.model.graph
        gone = [node for node in graph.node if node_key(node) in names or _holds(node, names)]
        unknown: set[str] = set()
        for name in (output for node in gone for output in node.output if output):
            kind = self._types.get(name)
            if kind is None or not kind.elem_type or kind.shape is None:
                unknown.add(name)
            else:
                graph.input.append(onnx.helper.make_tensor_value_info(name, kind.elem_type, kind.shape))
        kept, made = [], {output for node in gone for output in node.output}
        taken = {id(node) for node in gone}
        for node in (node for node in graph.node if id(node) not in taken):
            if unknown & {*node.input}:
                unknown |= {*node.output}
                made |= {*node.output}
                self.unseen.append(node)
            else:
                kept.append(node)
        outputs = [value for value in graph.output if value.name not in made]
        _replace(graph.node, kept)
        _replace(graph.output, outputs)
        return bool(gone)

    def dropped(self, parser: Any) -> list[Refused]:
        """Return those that could not be parsed for want of a type, where the library says that it lacks them."""
        reason = "operator not supported"
        return [
            Refused(node_key(node), node.op_type, node.domain, module_of(node), reason, "")
            for node in self.unseen
            if not parser.supports_operator(node.op_type)
        ]


def _types(model: onnx.ModelProto) -> dict[str, TensorType]:
    try:
        return infer(model, concrete=False)
    except onnx.shape_inference.InferenceError:
        return {}


def _holds(node: onnx.NodeProto, names: set[str]) -> bool:
    return any(inner.name in names for body in subgraphs(node) for inner in _everywhere(body))


def _replace(field: Any, kept: Sequence[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in kept]
    del field[:]
    field.extend(copies)
