"""The node that is to blame is found by its name: in a wrong copy of a graph, and in a runtime that miscomputes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.graph.blame import Blame, Sides, first_wrong_node
from optimizer.graph.prefix import Cuts
from optimizer.graph.unlike import unlike_the_graph, unlike_the_module
from optimizer.measure.agreement import unlike
from optimizer.runtime.onnx import OnnxSession
from optimizer.stage import Tolerance

EXACT = Tolerance("float32 in another order", atol=1e-5, rtol=1e-4)
Change = Callable[[onnx.ModelProto], None]


def network(folder: Path, width: int = 6) -> Path:
    """A small attention-like network: projections, a scale by division, a softmax, a residual, a head."""
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=(width, width)).astype(np.float32) for n in ("wq", "wk", "wv", "wh")}
    weights["four"] = np.array(4, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], name="query"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], name="key"),
        helper.make_node("MatMul", ["x", "wv"], ["v"], name="value"),
        helper.make_node("Transpose", ["k"], ["kt"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        helper.make_node("Div", ["scores", "four"], ["scaled"], name="scale"),
        helper.make_node("Softmax", ["scaled"], ["shares"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"], name="mix"),
        helper.make_node("Add", ["mixed", "x"], ["sum"], name="residual"),
        helper.make_node("Relu", ["sum"], ["active"], name="relu"),
        helper.make_node("MatMul", ["active", "wh"], ["y"], name="head"),
    ]
    for node in nodes:
        node.metadata_props.add(key="optimizer.module", value=f"block.{node.name}")
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", width])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def plain(path: Path, feed: Any) -> Any:
    with OnnxSession(path, optimize=False) as session:
        return session.infer({spec.name: feed[spec.name] for spec in session.inputs})


def changed(path: Path, change: Change, folder: Path) -> Path:
    model = onnx.load(path)
    change(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def constant(name: str, value: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        found = next((t for t in model.graph.initializer if t.name == name), None)
        if found is not None:
            found.CopyFrom(numpy_helper.from_array(np.array(value, dtype=np.float32), name))

    return change


def sides(folder: Path, suspect: Callable[[Path, Any], Any] = plain) -> Sides:
    return Sides(plain, suspect, lambda a, b: unlike((a, b), EXACT), folder / "cuts")


def feed(batch: int = 2, length: int = 5, width: int = 6) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).normal(size=(batch, length, width)).astype(np.float32)}


def test_a_divisor_changed_by_a_stage_is_named_by_its_node(tmp_path: Path) -> None:
    """What onnxsim once did: it folded another graph's constant into a division."""
    good = network(tmp_path)
    bad = changed(good, constant("four", 2.0), tmp_path / "bad")
    blame = unlike_the_graph(Cuts(good), Cuts(bad), feed(), sides(tmp_path))
    assert blame is not None
    assert (blame.node, blame.operator, blame.module, blame.region) == ("scale", "Div", "block.scale", ("scale",))
    assert "with the parent's value in its place the outputs are right" in blame.sentence()


def test_a_tensor_that_a_stage_scales_on_purpose_is_not_blamed(tmp_path: Path) -> None:
    """The values are doubled and the shares' product halved again: only the divisor is wrong."""

    def change(model: onnx.ModelProto) -> None:
        constant("four", 2.0)(model)
        weight = next(t for t in model.graph.initializer if t.name == "wv")
        weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), "wv"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half"))
        place = next(i for i, n in enumerate(model.graph.node) if n.name == "residual")
        model.graph.node.insert(place, helper.make_node("Mul", ["mixed", "half"], ["back"], name="back"))
        model.graph.node[place + 1].input[0] = "back"

    good = network(tmp_path)
    bad = changed(good, change, tmp_path / "bad")
    blame = unlike_the_graph(Cuts(good), Cuts(bad), feed(), sides(tmp_path))
    assert blame is not None
    assert blame.node == "scale"


def test_equal_graphs_blame_nobody(tmp_path: Path) -> None:
    good = network(tmp_path)
    assert unlike_the_graph(Cuts(good), Cuts(good), feed(), sides(tmp_path)) is None
    assert first_wrong_node(Cuts(good), feed(), sides(tmp_path)) is None


def lies(node: str, when: Callable[[onnx.ModelProto, Any], bool]) -> Callable[[Path, Any], Any]:
    """A runtime whose kernel of one node is wrong: it scales what the node writes."""

    def run(path: Path, given: Any) -> Any:
        model = onnx.load(path)
        found = next((n for n in model.graph.node if n.name == node), None)
        if found is None or not when(model, given):
            return plain(path, given)
        name = found.output[0]
        found.output[0] = "right"
        place = list(model.graph.node).index(found) + 1
        model.graph.initializer.append(numpy_helper.from_array(np.array(1.5, dtype=np.float32), "error"))
        model.graph.node.insert(place, helper.make_node("Mul", ["right", "error"], [name], name="fault"))
        wrong = path.parent / "wrong.onnx"
        onnx.save(model, wrong)
        return plain(wrong, given)

    return run


@pytest.mark.parametrize("node", ["query", "turn", "scale", "mix", "relu", "head"])
def test_a_kernel_that_lies_in_a_batch_is_named(tmp_path: Path, node: str) -> None:
    builds: list[Path] = []
    lie = lies(node, lambda _, given: len(next(iter(given.values()))) > 1)

    def run(path: Path, given: Any) -> Any:
        if path.parent.name.startswith("prefix"):
            builds.append(path)
        return lie(path, given)

    model = network(tmp_path)
    blame = first_wrong_node(Cuts(model), feed(batch=2), sides(tmp_path, run))
    assert blame is not None
    assert (blame.node, blame.region, blame.module) == (node, (node,), f"block.{node}")
    assert "alone, on the reference's values, it is wrong as well" in blame.sentence()
    assert len(builds) <= 1 + 4  # the whole, and log2 of 11 nodes
    assert first_wrong_node(Cuts(model), feed(batch=1), sides(tmp_path, run)) is None


def test_a_kernel_that_lies_at_long_sequences_is_named(tmp_path: Path) -> None:
    run = lies("softmax", lambda _, given: max(a.shape[1] for a in given.values()) >= 64)
    blame = first_wrong_node(Cuts(network(tmp_path)), feed(length=64), sides(tmp_path, run))
    assert blame is not None
    assert blame.node == "softmax"
    assert first_wrong_node(Cuts(network(tmp_path)), feed(length=63), sides(tmp_path, run)) is None


def test_a_fusion_is_named_as_a_region(tmp_path: Path) -> None:
    """Wrong only where scale and softmax meet inside one graph, with nothing read out between them."""

    def fused(model: onnx.ModelProto, _: Any) -> bool:
        names = {n.name for n in model.graph.node}
        return {"scale", "softmax"} <= names and "scaled" not in {o.name for o in model.graph.output}

    blame = first_wrong_node(Cuts(network(tmp_path)), feed(), sides(tmp_path, lies("softmax", fused)))
    assert blame is not None
    assert (blame.node, blame.region) == ("softmax", ("scale", "softmax"))
    assert "alone it is right: the fault appears only together" in blame.sentence()


def test_a_fault_that_every_cut_mends_is_said_to_vanish(tmp_path: Path) -> None:
    def whole(model: onnx.ModelProto, _: Any) -> bool:
        return len(model.graph.node) == 11 and len(model.graph.output) == 1 and bool(model.graph.name == "attention")

    def run(path: Path, given: Any) -> Any:
        return lies("query", whole)(path, given) if path.parent.name.startswith("prefix") else plain(path, given)

    blame = first_wrong_node(Cuts(network(tmp_path)), feed(), sides(tmp_path, run))
    assert blame is not None
    assert "cutting makes it vanish" in blame.sentence()


def test_the_region_is_a_model_that_shows_the_fault_by_itself(tmp_path: Path) -> None:
    run = lies("mix", lambda _, given: len(next(iter(given.values()))) > 1)
    blame = first_wrong_node(Cuts(network(tmp_path)), feed(), sides(tmp_path, run))
    assert isinstance(blame, Blame)
    assert blame.part is not None
    onnx.checker.check_model(onnx.load(blame.part), full_check=False)
    right, wrong = plain(blame.part, blame.feed), run(blame.part, blame.feed)
    np.testing.assert_array_equal(right["mixed"], blame.expected["mixed"])
    np.testing.assert_array_equal(wrong["mixed"], blame.found["mixed"])
    assert not np.allclose(right["mixed"], wrong["mixed"])


def test_a_prefix_that_the_runtime_refuses_is_left_out(tmp_path: Path) -> None:
    from optimizer.errors import StageError

    lie = lies("scale", lambda *_: True)

    def run(path: Path, given: Any) -> Any:
        if len(onnx.load(path).graph.node) in (5, 6) and path.parent.name.startswith("prefix"):
            raise StageError("no kernel", where="runtime")
        return lie(path, given)

    blame = first_wrong_node(Cuts(network(tmp_path)), feed(), sides(tmp_path, run))
    assert blame is not None
    assert "cannot be built: no kernel" in blame.sentence()
    assert "scale" in blame.region


def test_a_runtime_that_stops_at_a_node_is_named_by_it(tmp_path: Path) -> None:
    from optimizer.errors import StageError

    def run(path: Path, given: Any) -> Any:
        if "mix" in {n.name for n in onnx.load(path).graph.node}:
            raise StageError("no kernel", where="runtime")
        return plain(path, given)

    blame = first_wrong_node(Cuts(network(tmp_path)), feed(), sides(tmp_path, run))
    assert blame is not None
    assert (blame.node, blame.region) == ("mix", ("mix",))


def test_a_reshape_that_a_stage_hardcoded_to_batch_2_is_named(tmp_path: Path) -> None:
    def reshape(model: onnx.ModelProto, shape: list[int]) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape, dtype=np.int64), "shape"))
        place = next(i for i, n in enumerate(model.graph.node) if n.name == "residual")
        model.graph.node.insert(place, helper.make_node("Reshape", ["mixed", "shape"], ["formed"], name="form"))
        model.graph.node[place + 1].input[0] = "formed"

    good = changed(network(tmp_path), lambda m: reshape(m, [0, -1, 6]), tmp_path / "good")
    bad = changed(network(tmp_path), lambda m: reshape(m, [2, -1, 6]), tmp_path / "bad")
    assert unlike_the_graph(Cuts(good), Cuts(bad), feed(batch=2), sides(tmp_path)) is None
    blame = unlike_the_graph(Cuts(good), Cuts(bad), feed(batch=3), sides(tmp_path))
    assert blame is not None
    assert (blame.node, blame.operator) == ("form", "Reshape")


def test_an_export_that_leaves_its_module_is_named_by_the_submodule(tmp_path: Path) -> None:
    """The module's values, by submodule, are those of the right graph; the exported one has another divisor."""
    good = network(tmp_path)
    bad = changed(good, constant("four", 2.0), tmp_path / "bad")
    cuts = Cuts(good)
    names = {f"block.{node.name}": node.output[0] for node in cuts.nodes}
    values = plain(cuts.write(cuts.ending_in(list(names.values())), tmp_path / "values"), feed())
    modules = {module: values[name] for module, name in names.items()}
    blame = unlike_the_module({"y": values["y"]}, modules, Cuts(bad), feed(), sides(tmp_path))
    assert blame is not None
    assert (blame.node, blame.module) == ("scale", "block.scale")
    assert unlike_the_module({"y": values["y"]}, modules, Cuts(good), feed(), sides(tmp_path)) is None
