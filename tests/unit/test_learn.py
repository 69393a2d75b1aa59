"""Learning on a quantized graph: closer to float32 on samples it has not seen, and the same structure."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from optimizer.calibration import learn as learning
from optimizer.calibration.barriers import Barriers
from optimizer.calibration.learn import Learning, Refined, refine
from optimizer.calibration.learning_batches import split
from optimizer.calibration.paired import Gain
from optimizer.calibration.probe import decibels
from optimizer.calibration.table import TensorRange
from optimizer.data.samples import Sample
from optimizer.errors import StageError
from optimizer.graph.affine import symmetric
from optimizer.graph.learnable import find
from optimizer.graph.quantize import activations, quantize
from optimizer.graph.receipt import graph_receipt
from optimizer.runtime.onnx import OnnxSession
from optimizer.stages.refine import _verdict


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sums wherever the tests run."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})


def samples(count: int, seed: int) -> Any:
    """Smooth pictures: neighbouring pixels are alike, as in real ones."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, 2, 12, 12)).astype(np.float32)
    smooth = (noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)) / 3 + rng.normal(size=(count, 1, 1, 1))
    return [Sample({"x": image.astype(np.float32)}, None, str(i)) for i, image in enumerate(smooth)]


@lru_cache(maxsize=1)
def network() -> bytes:
    """Four convolutions, a MatMul with its bias in an Add."""
    rng = np.random.default_rng(7)
    tensors, nodes, name, width = [], [], "x", 2
    for i in range(4):
        weight = rng.normal(size=(8, width, 3, 3)) * np.sqrt(2 / (9 * width))
        tensors += [
            numpy_helper.from_array(weight.astype(np.float32), f"w{i}"),
            numpy_helper.from_array(rng.normal(size=8).astype(np.float32) * 0.1, f"b{i}"),
        ]
        nodes.append(helper.make_node("Conv", [name, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        name, width = f"r{i}", 8
    tensors += [
        numpy_helper.from_array((rng.normal(size=(8, 5)) / 3).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=5).astype(np.float32), "b"),
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w"], ["m"], name="matmul"),
        helper.make_node("Add", ["m", "b"], ["y"], name="add"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", 1, ["batch", 2, 12, 12])],
        [helper.make_tensor_value_info("y", 1, ["batch", 5])],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def float32() -> onnx.ModelProto:
    return onnx.ModelProto.FromString(network())


def outputs(model: onnx.ModelProto, data: Any, folder: Path, optimize: bool = False) -> Any:
    onnx.save(model, folder / "run.onnx")
    with OnnxSession(folder / "run.onnx", optimize=optimize) as session:
        return session.infer({"x": np.stack([s.inputs["x"] for s in data])})["y"]


def ranges(folder: Path) -> dict[str, TensorRange]:
    """MinMax over the calibration samples, by running the graph with every activation given out."""
    model = float32()
    names = activations(float32())
    for name in set(names) - {"x", "y"}:
        model.graph.output.append(helper.make_tensor_value_info(name, 1, None))
    onnx.save(model, folder / "all.onnx")
    feed = {"x": np.stack([s.inputs["x"] for s in samples(512, 1)])}
    with OnnxSession(folder / "all.onnx") as session:
        found = {**feed, **session.infer(feed)}
    return {n: Range(float(found[n].min()), float(found[n].max())) for n in names}  # type: ignore[misc]


class Range:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high, self.magnitude = low, high, max(-low, high)


def quantized(folder: Path, dialect: Any) -> onnx.ModelProto:
    return quantize(float32(), ranges(folder), dialect).model


def sqnr_db(expected: Any, found: Any) -> float:
    expected = expected.astype(np.float64)
    return float(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


def learn(model: onnx.ModelProto, folder: Path, **options: Any) -> Any:
    given = {"how": Learning(8, False), "progress": lambda *_: None, "data": samples(512, 1), **options}
    onnx.save(float32(), folder / "reference.onnx")
    with OnnxSession(folder / "reference.onnx") as reference:
        return refine(model, float32(), given.pop("data"), reference=reference, **given)


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu"])
def test_learning_gains_on_samples_it_has_not_seen_and_keeps_the_structure(dialect: Any, tmp_path: Path) -> None:
    model = quantized(tmp_path, dialect)
    before = onnx.ModelProto.FromString(model.SerializeToString())
    unseen = samples(200, 2)
    expected = outputs(float32(), unseen, tmp_path)
    plain = sqnr_db(expected, outputs(model, unseen, tmp_path, optimize=dialect == "cpu"))
    refined = learn(model, tmp_path, how=Learning(4, False))
    assert refined.kept
    assert refined.after_db - refined.before_db == pytest.approx(refined.gain.db)
    gained = sqnr_db(expected, outputs(model, unseen, tmp_path, optimize=dialect == "cpu"))
    assert gained > plain + 0.3
    shapes = [[(t.name, list(t.dims)) for t in m.graph.initializer] for m in (model, before)]
    assert shapes[0] == shapes[1]  # a scale of shape [1] in place of a scalar, and TensorRT computes in float
    assert [n.SerializeToString() for n in model.graph.node] == [n.SerializeToString() for n in before.graph.node]
    onnx.save(before, tmp_path / "before.onnx")
    onnx.save(model, tmp_path / "after.onnx")
    assert graph_receipt(tmp_path / "after.onnx").shares == graph_receipt(tmp_path / "before.onnx").shares


def test_how_threads_wait_for_one_another_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a busy program the same graph is learned as alone, to the last bit."""
    monkeypatch.setattr("optimizer.calibration.barriers.usable_cores", lambda: 2)
    found = []
    for short in (False, True):
        looks: list[bool] = []

        def look(self: Barriers, short: bool = short, looks: list[bool] = looks) -> None:
            self.wait_shortly(short)
            looks.append(self.short)

        monkeypatch.setattr(Barriers, "look", look)
        model = shifted_biases(tmp_path)
        assert learn(model, tmp_path, how=Learning(1, True), data=samples(96, 1)).kept
        assert set(looks) == {short}
        found.append(model.SerializeToString())
    assert found[0] == found[1]


def test_what_does_not_gain_is_not_kept(tmp_path: Path) -> None:
    model = quantized(tmp_path, "tensorrt")
    before = model.SerializeToString()
    refined = learn(model, tmp_path, how=Learning(0, False))
    assert refined.after_db == refined.before_db
    assert not refined.kept
    assert model.SerializeToString() == before


def shifted_biases(folder: Path) -> onnx.ModelProto:
    """Return the quantized graph with every bias off, as rounding that leans to one side would make it."""
    model = quantized(folder, "tensorrt")
    for tensor in model.graph.initializer:
        if tensor.name in {"b0", "b1", "b2", "b3", "b"}:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.2), tensor.name))
    return model


def test_what_gains_by_chance_on_the_samples_held_out_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights moved at random by a part of a step: on 6 samples that looks like a gain again and again."""
    plain = quantized(tmp_path, "tensorrt")
    unseen = [({"x": np.stack([s.inputs["x"] for s in samples(200, 2)])}, np.arange(200))]
    truths: list[float] = []

    def move_at_random(pair: Any, feed: Any) -> None:
        del feed
        before = decibels(pair.shares(unseen))
        rng = np.random.default_rng(len(truths))
        for weight in pair.learnable.weights:
            step = float(pair.quantized.constants[weight.scale].mean())
            moved = rng.normal(size=weight.value.shape).astype(np.float32) * step / 16
            pair.parameters[weight.result].data += torch.from_numpy(moved)
        truths.append(decibels(pair.shares(unseen)) - before)

    monkeypatch.setattr(learning, "_correct_biases", move_at_random)
    found = []
    for seed in range(40):
        model = onnx.ModelProto.FromString(plain.SerializeToString())
        found.append(learn(model, tmp_path, how=Learning(0, True), data=samples(24, seed + 3)))
        assert found[-1].held_out == 6
        assert (model.SerializeToString() != plain.SerializeToString()) == found[-1].kept
    worse = [refined for refined, truth in zip(found, truths, strict=True) if truth < 0]
    assert sum(refined.kept for refined in worse) <= 0.05 * len(found)
    by_number = [refined for refined in worse if refined.gain.db > 0]
    assert len(by_number) > 0.1 * len(found)  # the twin: what is worse would be kept


def test_a_gain_that_is_none_of_chance_is_kept_on_as_few_samples(tmp_path: Path) -> None:
    refined = learn(shifted_biases(tmp_path), tmp_path, how=Learning(0, True), data=samples(24, 1))
    assert refined.held_out == 6
    assert refined.kept


def test_samples_held_out_have_no_part_in_what_is_learned(tmp_path: Path) -> None:
    data, others = samples(48, 1), samples(48, 5)
    held, rest = (set(map(int, part)) for part in split(48))
    exchanged = [[others[i] if i in which else data[i] for i in range(48)] for which in (set(), held, rest)]
    models = []
    for given in exchanged:
        models.append(shifted_biases(tmp_path))
        assert learn(models[-1], tmp_path, how=Learning(2, True), data=given).kept
    same, judged_by_others, learned_from_others = (model.SerializeToString() for model in models)
    assert judged_by_others == same
    assert learned_from_others != same


def test_the_note_tells_the_interval_and_what_it_was_worth() -> None:
    surely, by_chance = Gain(1.1, 0.8, 1.4), Gain(1.1, -0.2, 2.4)
    assert _verdict(Refined(24.0, 25.1, surely, 384, 64)) == (
        "SQNR of the outputs 24.0 -> 25.1 dB on 64 held-out calibration samples, "
        "against plain rounding +1.1 dB (+0.8 to +1.4) on the same samples"
    )
    assert _verdict(Refined(24.0, 25.1, by_chance, 384, 64)).endswith(
        "+1.1 dB (-0.2 to +2.4) on the same samples: not better by more than chance, so nothing was changed"
    )


def test_bias_correction_takes_out_a_planted_shift(tmp_path: Path) -> None:
    model = shifted_biases(tmp_path)
    unseen = samples(200, 2)
    expected = outputs(float32(), unseen, tmp_path)
    shifted = sqnr_db(expected, outputs(model, unseen, tmp_path))
    refined = learn(model, tmp_path, how=Learning(0, True))
    assert refined.after_db > refined.before_db + 10
    assert sqnr_db(expected, outputs(model, unseen, tmp_path)) > shifted + 10


def test_an_integer_bias_keeps_the_scale_of_its_accumulator(tmp_path: Path) -> None:
    model = quantized(tmp_path, "cpu")
    assert learn(model, tmp_path, how=Learning(2, False)).kept
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    producers = {n.output[0]: n for n in model.graph.node}
    checked = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            data, weight, bias = (producers[name] for name in node.input)
            products = constants[data.input[1]] * constants[weight.input[1]]
            np.testing.assert_allclose(constants[bias.input[1]], products, rtol=1e-6)
            checked += 1
    assert checked == 4


def test_too_few_samples_are_refused(tmp_path: Path) -> None:
    model = quantized(tmp_path, "tensorrt")
    with pytest.raises(StageError, match=r"data\.calibration: 11 samples are too few to learn from: give at least 12"):
        learn(model, tmp_path, data=samples(11, 1))


def test_weights_start_from_their_unrounded_values(tmp_path: Path) -> None:
    found = find(quantized(tmp_path, "tensorrt"), float32())
    constants = {t.name: numpy_helper.to_array(t) for t in float32().graph.initializer}
    assert len(found.weights) == 5
    for weight in found.weights:
        assert any(np.array_equal(weight.value, value) for value in constants.values() if value.ndim > 1)
    assert sorted(found.biases) == ["conv0", "conv1", "conv2", "conv3", "matmul"]
    assert len(found.scales) == 5
    assert symmetric(Range(-1.0, 1.0)).zero_point == 0


def test_a_graph_that_torch_reads_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer.graph import differentiable

    wrong = {**differentiable.OPERATORS, "Relu": lambda node, inputs: inputs[0].abs()}
    monkeypatch.setattr(differentiable, "OPERATORS", wrong)
    with pytest.raises(StageError, match=r"output 'y' of the float32 graph comes out otherwise in torch"):
        learn(quantized(tmp_path, "tensorrt"), tmp_path)


def test_a_graph_of_fixed_batch_learns_in_that_batch(tmp_path: Path) -> None:
    def fixed(model: onnx.ModelProto) -> onnx.ModelProto:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        return model

    model = fixed(quantized(tmp_path, "tensorrt"))
    onnx.save(fixed(float32()), tmp_path / "reference.onnx")
    with OnnxSession(tmp_path / "reference.onnx") as reference:
        found = refine(
            model,
            fixed(float32()),
            samples(45, 1),  # 34 to learn from and 11 held out: neither is a multiple of 4
            reference=reference,
            how=Learning(1, True),
            progress=lambda *_: None,
        )
    assert (found.learned_on, found.held_out) == (34, 11)
