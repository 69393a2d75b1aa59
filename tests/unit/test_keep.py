"""What `keep:` names, and how an entry that names nothing is refused."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from optimizer.errors import StageError
from optimizer.graph.keep import match
from optimizer.graph.modules import MODULE


def node(kind: str, name: str, module: str = "", output: str = "") -> onnx.NodeProto:
    made = helper.make_node(kind, ["x"], [output or f"{name}_y"], name=name)
    if module:
        made.metadata_props.add(key=MODULE, value=module)
    return made


NODES = [
    node("Conv", "stem", "conv1"),
    node("Conv", "first", "layer1.0.conv1"),
    node("Relu", "first_relu", "layer1.0"),
    node("Conv", "second", "layer1.1.conv1"),
    node("Conv", "third", "layer10.0.conv1"),
    node("Gemm", "", "linear", output="logits"),
]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("Conv", {"stem", "first", "second", "third"}),
        ("stem", {"stem"}),
        ("logits", {"logits"}),  # a node without a name has that of its first output
        ("linear", {"logits"}),
        ("layer1.0.conv1", {"first"}),
        ("layer1.0", {"first", "first_relu"}),
        ("layer1", {"first", "first_relu", "second"}),  # and not layer10
        ("layer10", {"third"}),
    ],
)
def test_an_entry_names_an_operator_type_a_node_or_a_module_with_all_inside(keep: str, expected: set[str]) -> None:
    assert match([keep], NODES, "quantize") == dict.fromkeys(expected, keep)


def test_the_first_entry_that_names_a_node_is_the_one_given() -> None:
    assert match(["layer1.0", "Conv"], NODES, "quantize")["first"] == "layer1.0"
    assert match(["Conv", "layer1.0"], NODES, "quantize")["first"] == "Conv"


def test_nothing_to_keep_keeps_nothing() -> None:
    assert match([], NODES, "quantize") == {}


def test_an_entry_that_names_nothing_gets_the_nearest_of_each_kind() -> None:
    with pytest.raises(StageError) as caught:
        match(["layer1.0.conv2"], NODES, "quantize")
    assert str(caught.value) == (
        "quantize: keep: 'layer1.0.conv2' is neither an operator type, a node nor a module of the graph\n"
        "  nearest: layer1.0.conv1 (module), layer10.0.conv1 (module)"
    )
    with pytest.raises(StageError, match=r"nearest: Conv \(operator type\), conv1 \(module\)"):
        match(["Conv1"], NODES, "quantize")
    with pytest.raises(StageError, match=r"nearest: first \(node\)"):
        match(["firs"], NODES, "quantize")


def test_all_entries_that_name_nothing_are_told_at_once() -> None:
    with pytest.raises(StageError) as caught:
        match(["stem", "zzz", "LSTM"], NODES, "float16")
    assert str(caught.value) == (
        "float16: keep: 'zzz' is neither an operator type, a node nor a module of the graph; "
        "'LSTM' is neither an operator type, a node nor a module of the graph\n"
        "  operator types: Conv, Gemm, Relu; modules: conv1, layer1, layer10, linear"
    )


def test_a_prefix_of_a_name_is_no_module() -> None:
    with pytest.raises(StageError, match="'layer' is neither"):
        match(["layer"], NODES, "quantize")
