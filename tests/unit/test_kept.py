"""A keep: that names nothing fails its variant as soon as the graph is there, and no other."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from optimizer.errors import StageError
from optimizer.pipeline.kept import refused
from optimizer.recipe.steps import Step
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.choose import Choose
from optimizer.stages.equalize import Equalize
from optimizer.stages.float16 import Float16
from optimizer.stages.quantize import Quantize
from optimizer.stages.refine import Refine
from optimizer.stages.simplify import Simplify
from optimizer.types import Artifact

SIMPLIFY = Step("simplify", Simplify(), {"graph": "export"})
ERROR = "quantize: keep: 'hed' is neither an operator type, a node nor a module of the graph\n  nearest: head (node)"


@pytest.fixture
def outputs(tmp_path: Path) -> dict[str, Artifact]:
    value = helper.make_tensor_value_info
    node = helper.make_node("Relu", ["x"], ["y"], name="head")
    graph = helper.make_graph([node], "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    return {"simplify": Artifact("onnx", tmp_path, "d" * 64)}


def int8(name: str, *keep: str, graph: str = "simplify") -> list[Step]:
    """A variant for two dialects, with a choice of methods in one of them."""
    table = f"{name}/calibrate"
    choose = Choose(method="auto", keep=keep)
    return [
        Step(table, Calibrate(), {"graph": graph, "samples": "calibration"}, name),
        Step(f"{name}@cpu/choose", choose, {"graph": graph, "table": table}, name),
        Step(f"{name}@cpu/quantize", Quantize(keep=keep), {"graph": graph, "table": f"{name}@cpu/choose"}, name),
        Step(f"{name}@openvino/quantize", Quantize(keep=keep), {"graph": graph, "table": table}, name),
    ]


def test_what_keeps_a_name_that_is_not_there_is_refused_with_all_that_leads_to_it(outputs: dict[str, Artifact]) -> None:
    wrong, right, bare = int8("wrong", "hed"), int8("right", "head", "Relu"), int8("bare")
    found = refused(SIMPLIFY, [SIMPLIFY, *wrong, *right, *bare], outputs, ())
    assert set(found) == {step.id for step in wrong}
    assert {error.render() for error in found.values()} == {ERROR}


def test_the_error_is_the_one_of_the_stage_itself(outputs: dict[str, Artifact]) -> None:
    """The stage refuses it, too, where it sees the graph first."""
    from optimizer.graph.keep import match

    with pytest.raises(StageError) as caught:
        match(["hed"], onnx.load(outputs["simplify"].file).graph.node, "quantize")
    assert caught.value.render() == ERROR


def test_what_is_calibrated_already_is_no_failure(outputs: dict[str, Artifact]) -> None:
    wrong = int8("wrong", "hed")
    calibrated = {**outputs, "wrong/calibrate": Artifact("calibration", Path(), "e" * 64)}
    assert "wrong/calibrate" not in refused(SIMPLIFY, wrong, calibrated, ())
    assert not refused(SIMPLIFY, wrong, outputs, {"wrong@cpu/quantize", "wrong@openvino/quantize"})


def test_a_graph_that_is_equalized_first_is_asked_when_it_is(outputs: dict[str, Artifact]) -> None:
    """Equalization adds nodes, which keep may name."""
    equalize = Step("eq/equalize", Equalize(smooth_quant=0.5, keep=("hed",)), {"graph": "simplify"}, "eq")
    steps = [equalize, *int8("eq", "hed", graph="eq/equalize")]
    assert not refused(SIMPLIFY, steps, outputs, ())
    made = {**outputs, "eq/equalize": outputs["simplify"]}
    assert set(refused(equalize, steps, made, ())) == {step.id for step in steps[1:]}


def test_what_needs_no_calibration_refuses_by_itself(outputs: dict[str, Artifact]) -> None:
    half = Step("fp16/float16", Float16(keep=("hed",)), {"graph": "simplify"}, "fp16")
    assert refused(SIMPLIFY, [half], outputs, ()) == {}


def test_a_graph_that_cannot_be_learned_through_is_refused_before_it_is_calibrated(
    outputs: dict[str, Artifact], tmp_path: Path
) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Det", ["a"], ["y"], name="det")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 0.0, 0.0, 1.0])
    ends = [value("x", TensorProto.FLOAT, [2, 2])], [value("y", TensorProto.FLOAT, [])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", *ends, [weight])), tmp_path / "model.onnx")

    steps = int8("learned")[:1]
    steps.append(Step("learned/quantize", Quantize(), {"graph": "simplify", "table": steps[0].id}, "learned"))
    sources = {"graph": "learned/quantize", "float32": "simplify", "samples": "calibration"}
    steps.append(Step("learned/refine", Refine(rounding="learned"), sources, "learned"))
    found = refused(SIMPLIFY, steps, outputs, ())
    assert set(found) == {"learned/calibrate", "learned/quantize", "learned/refine"}
    (said,) = {error.render().splitlines()[0] for error in found.values()}
    assert "Det 'det'" in said
