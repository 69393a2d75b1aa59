"""What cannot be learned through is told from the graph alone, with its nodes, its modules and the way on."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper

from optimizer.errors import StageError
from optimizer.graph.differentiable_paths import check_gradients
from optimizer.graph.modules import MODULE


def chain(*operators: str, **attributes: Any) -> onnx.ModelProto:
    """A layer, then these operators one after another."""
    nodes, name = [helper.make_node("MatMul", ["x", "w"], ["h"], name="layer")], "h"
    for number, operator in enumerate(operators):
        own = attributes if operator == "Cast" and number == len(operators) - 1 else {"to": 7}
        nodes.append(
            helper.make_node(
                operator, [name], [f"t{number}"], name=f"node_{operator}", **(own if operator == "Cast" else {})
            )
        )
        nodes[-1].metadata_props.add(key=MODULE, value="head.steps")
        name = f"t{number}"
    nodes.append(helper.make_node("Identity", [name], ["y"], name="last"))
    x = helper.make_tensor_value_info("x", 1, ["batch", 2])
    made = helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name="y")])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize("operator", ["Floor", "Ceil", "Round", "Sign"])
def test_steps_behind_a_layer_are_refused_where_something_is_learned(operator: str) -> None:
    model = chain(operator)
    model.graph.node.append(helper.make_node("Add", ["h", "y"], ["sum"]))  # a gradient passes beside it
    model.graph.output[0].name = "sum"
    with pytest.raises(StageError) as caught:
        check_gradients(model, learned=True)
    said = str(caught.value)
    assert f"no gradient comes through {operator} 'node_{operator}' of module 'head.steps'" in said
    assert "rounding: nearest" in said
    assert "keep does not help" in said
    check_gradients(model, learned=False)  # bias correction only goes forward


def test_steps_of_positions_are_none_of_what_is_learned() -> None:
    model = chain("Relu")
    model.graph.node.insert(0, helper.make_node("Floor", ["x"], ["f"]))
    model.graph.node[1].input[0] = "f"
    check_gradients(model, learned=True)


def test_outputs_that_no_gradient_reaches_are_refused_with_where_it_ends() -> None:
    with pytest.raises(StageError, match=r"no gradient comes to any output: it ends at ArgMax 'node_ArgMax' of module"):
        check_gradients(chain("ArgMax"), learned=True)
    with pytest.raises(StageError, match=r"it ends at Cast 'node_Cast' of module 'head\.steps'"):
        check_gradients(chain("Cast", to=7), learned=True)
    check_gradients(chain("Cast", to=11), learned=True)


def test_a_choice_beside_which_a_gradient_passes_is_none_to_refuse() -> None:
    model = chain("ArgMax")
    model.graph.output.append(onnx.ValueInfoProto(name="h"))
    check_gradients(model, learned=True)


def test_what_is_not_known_is_refused_without_weights_and_names_the_way_on() -> None:
    model = chain("Det")  # its weight 'w' is nowhere
    for learned in (True, False):
        with pytest.raises(StageError) as caught:
            check_gradients(model, learned=learned)
        said = str(caught.value)
        assert "no gradient is known through Det 'node_Det' of module 'head.steps'" in said
        assert "rounding: nearest" in said
        assert "bias_correction" in said
        assert "keep does not help" in said


@pytest.mark.parametrize(
    ("operator", "attributes", "outputs", "what"),
    [
        ("Conv", {"auto_pad": "SAME_UPPER"}, 1, "auto_pad is not resolved"),
        ("ConvTranspose", {"pads": [0, 0, 1, 1]}, 1, "its padding differs between the sides"),
        ("ConvTranspose", {"output_shape": [4, 4]}, 1, "its padding differs between the sides"),
        ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1}, 1, "indices and ceil_mode are not supported"),
        ("MaxPool", {"kernel_shape": [2, 2]}, 2, "indices and ceil_mode are not supported"),
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, 1, "one-sided padding are not supported"),
        ("Pad", {"mode": "reflect"}, 1, "mode reflect is not supported"),
        ("LayerNormalization", {}, 2, "mean and deviation are not given out"),
        ("BatchNormalization", {"training_mode": 1}, 1, "it is in training mode"),
        ("Cast", {"to": 10}, 1, "type FLOAT16 is not supported"),
        ("EyeLike", {"dtype": 16}, 1, "type BFLOAT16 is not supported"),
    ],
)
def test_forms_that_are_not_computed_are_refused_from_the_graph_alone(
    operator: str, attributes: dict[str, Any], outputs: int, what: str
) -> None:
    node = helper.make_node(operator, ["x", "w"], [f"y{i}" for i in range(outputs)], name="odd", **attributes)
    model = helper.make_model(helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="y0")]))
    with pytest.raises(StageError) as caught:
        check_gradients(model, learned=False)
    said = str(caught.value)
    assert f"no gradient is known through {operator} 'odd': " in said
    assert what in said
    del node.attribute[:]  # the twin
    del node.output[1:]
    if operator == "Cast":
        node.attribute.append(helper.make_attribute("to", 1))
    check_gradients(helper.make_model(helper.make_graph([node], "g", [], [])), learned=False)
