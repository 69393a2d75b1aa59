"""Whether a graph can be learned through, told from its operators alone: neither weights nor torch are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from optimizer.errors import StageError
from optimizer.graph.differentiable_forms import unsupported
from optimizer.graph.differentiable_operators import OPERATORS
from optimizer.graph.index import attribute, node_key
from optimizer.graph.modules import module_of
from optimizer.graph.quantizable import COMPUTE

# Nodes that a refusal names.
_NAMED = 6
# Constant between their steps: what stands before one of them is never told how to change.
_STEPS = frozenset({"Floor", "Ceil", "Round", "Sign"})
# Give out integers or booleans whatever they read: a gradient ends here, and passes beside it.
_ENDS = frozenset(
    {
        *("Shape", "Size", "ArgMax", "ArgMin", "NonZero", "IsNaN", "IsInf", "Not", "And", "Or", "Xor", "OneHot"),
        *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "ConstantOfShape", "EyeLike"),
    }
)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
_WITHOUT = (
    "Leave rounding: learned out (rounding: nearest), and bias_correction with it: bias_correction reads the same "
    "graph. float_share: 0.05 and method: auto need no gradient. keep does not help: what stays in float is read, too. "
    "Or write that part of forward() in other operations."
)
_STEPPED = (
    "Leave rounding: learned out (rounding: nearest); bias_correction, float_share: 0.05 and method: auto need no "
    "gradient. keep does not help: in float it has none either. Or compute that part of forward() without it."
)


def check_gradients(model: onnx.ModelProto, *, learned: bool) -> None:
    """Refuse a graph that cannot be read, or, where something is `learned`, through which no gradient comes.

    Needs no weights: it can be asked as soon as there is a graph, float32 or quantized.
    Raises: StageError naming the nodes with their modules, and the way on.
    """
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    check_known(nodes)
    if learned:
        _check_paths(nodes, [output.name for output in model.graph.output])


def check_known(nodes: Iterable[onnx.NodeProto]) -> None:
    """Refuse nodes that are not in the tables. Raises: StageError naming them."""
    known = {*OPERATORS, "QuantizeLinear", "DequantizeLinear"}
    odd: list[str] = []
    for node in nodes:
        form = "" if node.domain or node.op_type not in known else unsupported(node)
        if form is not None:
            odd.append(f"{_place(node)}: {form}" if form else _place(node))
    if odd:
        raise StageError(f"no gradient is known through {_named(odd)}", where="learning", hint=_WITHOUT)


def _check_paths(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> None:
    """Follow what is learned, from the layers that have weights to the outputs."""
    carrying: set[str] = set()
    stepped: list[str] = []
    ended: list[str] = []
    for node in nodes:
        if node.op_type in COMPUTE or node.op_type == "DequantizeLinear":
            carrying.update(node.output)
        elif carrying.isdisjoint(node.input):
            continue
        elif node.op_type in _STEPS:
            stepped.append(_place(node))
        elif _ends(node):
            ended.append(_place(node))
        else:
            carrying.update(node.output[:1] if node.op_type == "TopK" else node.output)
    if carrying.isdisjoint(outputs) and (ways := stepped + ended):
        raise StageError(f"no gradient comes to any output: it ends at {_named(ways)}", where="learning", hint=_STEPPED)
    if stepped:
        raise StageError(
            f"no gradient comes through {_named(stepped)}: constant between steps", where="learning", hint=_STEPPED
        )


def _ends(node: onnx.NodeProto) -> bool:
    return node.op_type in _ENDS or (node.op_type == "Cast" and attribute(node, "to") not in _FLOATS)


def _place(node: onnx.NodeProto) -> str:
    """Name a node for people: operator, node and the PyTorch module it comes from."""
    operator, module = f"{node.domain}:{node.op_type}".removeprefix(":"), module_of(node)
    return f"{operator} '{node_key(node)}'" + (f" of module '{module}'" if module else "")


def _named(places: Sequence[str]) -> str:
    return ", ".join(places[:_NAMED]) + (f" and {len(places) - _NAMED} more" if len(places) > _NAMED else "")
