"""Two bundles that differ in what a model alone does not show: sizes, shapes, labels, preprocessing, passports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bundle_pair
import bundle_run
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.bundle.write import write_bundle
from optimizer.cli.comparison import headline
from optimizer.compare.bundles import compare_bundles
from optimizer.compare.interleaved import Terms, asked_batch, batches
from optimizer.compare.result import Check, Comparison, conclude
from optimizer.compare.shipped import read_bundle
from optimizer.digest import sha256_json
from optimizer.errors import StageError, UsageError
from optimizer.recipe.model import Gate, MetricLimit, SpeedupLimit
from optimizer.runtime.golden import GOLDEN, read_golden, write_golden
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.passport import render, seal

FAST = Gate(speedup=SpeedupLimit(min=1e-6))
LOOSE = Gate(metrics={"top1": MetricLimit(max_drop=0.01)})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_pair.write(tmp_path_factory.mktemp("bundles") / "before")


def judged(before: Path, after: Path, gate: Gate | None = None) -> Comparison:
    return compare_bundles(before, after, gate, Terms(seconds=0.02))


def found(comparison: Comparison, subject: str) -> Check:
    return next(c for c in comparison.checks if c.subject.startswith(subject))


def resealed(folder: Path, **passport: Any) -> Path:
    """The same bundle with other entries in its passport; None takes one away."""
    document = json.loads((folder / "passport.json").read_text()) | passport
    document = {key: value for key, value in document.items() if value is not None}
    (folder / "passport.json").write_bytes(render(seal(document)))
    return folder


def test_other_preprocessing_of_the_same_model_is_no_pass(bundle: Path, tmp_path: Path) -> None:
    """A tenth of the accuracy behind the very same graph."""
    folder = tmp_path / "after"
    folder.mkdir()
    steps = json.loads((bundle / "preprocessing.json").read_text())
    steps["image"][0] = {"scale": 1.0}
    (folder / "preprocessing.json").write_text(json.dumps(steps))
    inputs = {name: array * 200 for name, array in read_golden(bundle / GOLDEN)[0].items()}
    with OnnxSession(bundle / "model.onnx") as session:
        write_golden(folder / GOLDEN, inputs, session.infer(inputs))
    worse = {"top1": {"value": 0.1, "samples": 100, "ci95": [0.05, 0.18]}}
    after = bundle_pair.changed(bundle, folder, golden=False, accuracy=worse)
    seen = judged(bundle, after)
    assert seen.status == "inconclusive"
    assert [found(seen, name).finding for name in ("preprocessing", "top1")] == ["inconclusive"] * 2
    asked = judged(bundle, after, LOOSE)
    assert asked.status == "inconclusive"
    assert found(asked, "preprocessing").finding == "shown"


def test_an_answer_under_another_name_is_a_regression(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "after"
    folder.mkdir()
    (folder / "labels.json").write_text(json.dumps(["dog", "cat", "élan"]))
    after = bundle_pair.changed(bundle, folder)
    said = found(judged(bundle, after), "labels")
    assert (said.finding, said.sentence) == ("fail", "labels are others: class 0 is 'dog', was 'cat'")
    assert found(judged(bundle, after, FAST), "labels").finding == "shown"
    (folder / "labels.json").unlink()
    (folder / "passport.json").unlink()
    files = {k: v for k, v in read_bundle(bundle, "").passport["files"].items() if k != "labels.json"}
    bare = resealed(bundle_pair.changed(bundle, folder), files=files)
    (folder / "labels.json").unlink()
    missing, new = found(judged(bundle, bare), "labels"), found(judged(bare, bundle), "labels")
    assert (missing.finding, missing.after) == ("fail", "none")
    assert (new.finding, new.sentence) == ("shown", "labels are new")


def sequences(bundle: Path, folder: Path, rows: int, sizes: tuple[int, int], golden: int) -> Path:
    """A bundle with a second open axis: the graph computes up to `rows` of it, `sizes` are the profile's."""
    table = np.linspace(0, 1, 48, dtype=np.float32).reshape(16, 3)[:rows]
    constants = {"axis": np.array([1]), "zero": np.array(0), "one": np.array(1), "table": table}
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], start=1, end=2),
        helper.make_node("Squeeze", ["shape"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["places"]),
        helper.make_node("Add", ["image", "places"], ["placed"]),
        helper.make_node("ReduceSum", ["placed", "axis"], ["logits"], keepdims=0),
    ]
    _save(folder, nodes, (["batch", "seq", 3], {"logits": ["batch", 3]}), constants)
    inputs = {"image": np.random.default_rng(golden).normal(size=(8, golden, 3)).astype(np.float32)}
    with OnnxSession(folder / "model.onnx") as session:
        write_golden(folder / GOLDEN, inputs, session.infer(inputs))
    bundle_pair.changed(
        bundle,
        folder,
        golden=False,
        accuracy={},
        inputs=[{"name": "image", "dtype": "float32", "shape": ["batch", "seq", 3]}],
        outputs=[{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}],
        profile={"batch": {"min": 1, "opt": 2, "max": 8}, "seq": {"min": sizes[0], "opt": sizes[0], "max": sizes[1]}},
    )
    allowed = {"tolerance": {"logits": {"max_abs": 1e-3, "reason": "rounding"}}}
    return resealed(folder, golden=read_bundle(folder, "").passport["golden"] | allowed)


def _save(
    folder: Path,
    nodes: list[onnx.NodeProto],
    shapes: tuple[list[int | str], dict[str, list[int | str]]],
    constants: dict[str, np.ndarray],
) -> None:
    kinds = {"best": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), s) for n, s in shapes[1].items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    folder.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx"
    )


def test_a_narrower_axis_is_a_regression_and_both_are_timed_on_what_both_take(bundle: Path, tmp_path: Path) -> None:
    wide = sequences(bundle, tmp_path / "wide", 16, (1, 16), 8)
    narrow = sequences(bundle, tmp_path / "narrow", 16, (1, 4), 4)
    seen = judged(wide, narrow)
    assert seen.status == "fail"
    assert found(seen, "profile").finding == "fail"
    assert found(seen, "latency, batch 1").before.endswith(" ms")


def test_where_no_golden_inputs_fit_both_profiles_latency_is_undecided(bundle: Path, tmp_path: Path) -> None:
    short = sequences(bundle, tmp_path / "short", 16, (1, 8), 8)
    long = sequences(bundle, tmp_path / "long", 16, (9, 16), 16)
    said = found(judged(short, long), "latency")
    assert (said.finding, said.sentence) == ("inconclusive", "no golden inputs are within the profiles of both")
    assert found(judged(short, long, FAST), "latency").finding == "inconclusive"
    assert found(judged(short, long, Gate()), "latency").finding == "shown"


def test_inputs_that_one_side_refuses_leave_open_only_what_the_candidate_refuses(bundle: Path, tmp_path: Path) -> None:
    short = sequences(bundle, tmp_path / "short", 8, (1, 8), 8)
    long = sequences(bundle, tmp_path / "long", 16, (1, 16), 16)
    more, less = (found(judged(*pair), "outputs") for pair in ((short, long), (long, short)))
    assert (more.finding, less.finding) == ("shown", "inconclusive")
    assert more.sentence.startswith("the golden inputs of the candidate do not run in the baseline: ")
    assert less.sentence.startswith("the golden inputs of the baseline do not run in the candidate: ")
    assert "on 8 golden inputs, those of the baseline" in found(judged(short, long), "output 'logits'").sentence
    asked = judged(long, short, FAST)
    assert found(asked, "outputs").finding == "shown"  # the gate's limits decide
    assert asked.status != "fail"


def test_outputs_of_another_open_size_are_a_regression(bundle: Path, tmp_path: Path) -> None:
    outputs = [
        {"name": "logits", "dtype": "float32", "shape": ["batch", "k"]},
        {"name": "best", "dtype": "int64", "shape": ["batch"]},
    ]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
    ]
    sides = []
    for size in (3, 4):
        folder = tmp_path / f"of-{size}"
        weights = np.random.default_rng(1).normal(size=(12, size)).astype(np.float32)
        _save(folder, nodes, (["batch", 3, 2, 2], {"logits": ["batch", "k"], "best": ["batch"]}), {"w": weights})
        sides.append(bundle_pair.changed(bundle, folder, outputs=outputs))
    one, other = sides
    said = found(judged(one, other), "output 'logits'")
    assert (said.finding, said.before, said.after) == ("fail", "[5, 3]", "[5, 4]")
    assert said.sentence == "output 'logits' came out as [5, 4], was [5, 3] on the same golden inputs"
    assert found(judged(one, other, FAST), "output 'logits'").finding == "shown"
    assert found(judged(one, one), "output 'logits'").finding == "shown"


def test_an_output_that_is_not_finite_is_said_where_the_gate_is_met(bundle: Path, tmp_path: Path) -> None:
    sevens = tmp_path / "sevens"
    sevens.mkdir()
    inputs, outputs = read_golden(bundle / GOLDEN)
    image = inputs["image"].copy()
    image[0, 0, 0, 0] = 7.0
    write_golden(sevens / GOLDEN, {"image": image}, outputs)
    before, after = bundle_pair.changed(bundle, sevens), bundle_pair.breaking(bundle, tmp_path / "after")
    seen = judged(before, after, Gate())
    assert headline(seen, has_gate=True) == "fail: an output is not finite"
    assert headline(seen, has_gate=False) == "fail: regression"
    slow = Check("int8", "latency, batch 1", "fail", "1 ms", "2 ms", "speedup at batch 1 is 0.50")
    assert headline(conclude((*seen.checks, slow), ()), has_gate=True) == "fail: the gate is not met"


def test_a_gate_without_a_batch_asks_at_the_first_of_the_recipe(bundle: Path, tmp_path: Path) -> None:
    timed = {str(batch): {"p50": 1.0} for batch in (1, 4)}
    two = bundle_pair.changed(bundle, tmp_path / "two", latency_ms=timed, timed_batches=[4, 1])
    one = read_bundle(bundle, "baseline")
    assert asked_batch(read_bundle(two, "baseline"), one, FAST) == 4
    assert asked_batch(one, read_bundle(two, "candidate"), FAST) == 1
    older = read_bundle(resealed(two, timed_batches=None), "baseline")
    with pytest.raises(UsageError, match="the passport of the baseline does not say at which of 1, 4"):
        batches(older, one, FAST)
    assert batches(older, one, Gate(batch=2, speedup=SpeedupLimit(min=1.0))) == (1, 2, 4)
    assert batches(older, one, None) == (1, 4)


def test_a_bundle_says_the_order_of_the_batches_and_what_it_was_evaluated_on(tmp_path: Path) -> None:
    figures = bundle_run.candidate("int8@onnxruntime")["latency_ms"]["1"]
    timed = bundle_run.candidate("int8@onnxruntime", latency_ms={"16": figures, "1": figures})
    run = bundle_run.write_run(tmp_path / "run", [bundle_run.candidate("fp32@torch"), timed])
    record = json.loads((run / "run.json").read_text()) | {"evaluation": {"split": "test", "limit": 100}}
    (run / "run.json").write_text(json.dumps(record))
    passport = read_bundle(write_bundle(run, "int8@onnxruntime", tmp_path / "b"), "baseline").passport
    assert passport["timed_batches"] == [16, 1]
    assert passport["from"]["evaluation_sha256"] == sha256_json({"split": "test", "limit": 100})


def test_weights_of_any_name_belong_to_the_artifact(bundle: Path, tmp_path: Path) -> None:
    sides = []
    for name, pad in (("one", 0), ("two", 4000)):
        folder = tmp_path / name
        model = onnx.load(bundle_run.classifier(tmp_path / f"{name}.onnx"))
        folder.mkdir()
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
        (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes() + b"\0" * pad)
        sides.append(read_bundle(bundle_pair.changed(bundle, folder), name))
    assert set(sides[0].artifact) == {"model.onnx", "weights.bin"}
    assert not sides[0].same_as(sides[1])
    assert sides[1].bytes == sides[0].bytes + 4000


def test_bytes_of_another_precision_are_shown(bundle: Path, tmp_path: Path) -> None:
    precision = {"requested": "fp32", "delivered": {"fp32": 1.0}, "source": None}
    slow = bundle_pair.slowed(bundle, tmp_path / "slow")
    assert found(judged(bundle, slow), "size").finding == "fail"
    said = found(judged(bundle, resealed(slow, precision=precision)), "size")
    assert said.finding == "shown"
    assert said.sentence.endswith("of another precision, so it is shown")


@pytest.mark.parametrize("name", ["accuracy", "latency_ms", "precision", "environment", "profile"])
def test_a_passport_that_lacks_what_is_read_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    lacking = resealed(bundle_pair.changed(bundle, tmp_path / "after"), **{name: None})
    with pytest.raises(StageError, match=f"does not hold what a comparison reads: {name}"):
        judged(bundle, lacking)
