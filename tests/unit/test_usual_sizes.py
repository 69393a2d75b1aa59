"""Work is counted at the sizes that a graph is mostly run at, where it notes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantization_graphs import build

from optimizer.graph.cost import count
from optimizer.graph.receipt import _optimise, graph_receipt, onnxruntime_receipt
from optimizer.graph.shapes import REPRESENTATIVE_SIZE, infer
from optimizer.graph.slim import slim
from optimizer.graph.usual_sizes import note_usual_sizes, usual_sizes

# A projection, whose work grows with the length, and a product of two activations, whose work grows with its square.
TEXT = """g (float[batch, length, 8] image) => (float[batch, length, 8] y) {
    h = MatMul (image, w0)
    t = Transpose <perm = [0, 2, 1]> (h)
    scores = MatMul (h, t)
    y = MatMul (scores, h)
}"""


def attention(**sizes: int) -> onnx.ModelProto:
    model = build(TEXT, {"w0": (8, 8)})
    note_usual_sizes(model, sizes)
    return model


def work(model: onnx.ModelProto) -> list[int]:
    return list(count(model, infer(model)).macs.values())


@pytest.mark.parametrize("length", [10, 512])
def test_work_is_counted_at_the_sizes_that_the_graph_notes(length: int) -> None:
    assert work(attention(length=length)) == [length * 64, length**2 * 8, length**2 * 8]


@pytest.mark.parametrize("sizes", [{}, {"width": 10}])
def test_an_axis_without_a_usual_size_counts_as_a_short_text(sizes: dict[str, int]) -> None:
    length = REPRESENTATIVE_SIZE
    assert work(attention(**sizes)) == [length * 64, length**2 * 8, length**2 * 8]


def test_work_stays_that_of_one_sample() -> None:
    assert work(attention(batch=32, length=10)) == work(attention(length=10))


def test_a_later_note_replaces_the_one_before() -> None:
    model = attention(batch=4, length=10)
    model.metadata_props.add(key="author", value="somebody")
    note_usual_sizes(model, {"length": 12})
    assert usual_sizes(model) == {"length": 12}
    note_usual_sizes(model, {})
    assert [entry.key for entry in model.metadata_props] == ["author"]
    assert usual_sizes(model) == {}


def test_onnxruntime_keeps_the_note_in_the_graph_that_it_optimises(tmp_path: Path) -> None:
    """Its receipt counts both graphs, and they must count alike."""
    model = attention(length=10)
    weight = np.ones((8, 8), dtype=np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))
    onnx.save(model, tmp_path / "model.onnx")
    made = _optimise(tmp_path / "model.onnx", tmp_path / "optimised.onnx", 1)
    assert usual_sizes(made) == {"length": 10}


def test_the_simplified_graph_notes_the_sizes_and_all_that_is_made_of_it_counts_at_them(tmp_path: Path) -> None:
    onnx.save(attention(length=99), tmp_path / "in.onnx")
    slim(str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), {"length": 10})
    assert usual_sizes(onnx.load(tmp_path / "out.onnx")) == {"length": 10}
    assert graph_receipt(tmp_path / "out.onnx").macs == onnxruntime_receipt(tmp_path / "out.onnx").macs
    assert sum(graph_receipt(tmp_path / "out.onnx").macs.values()) == 10 * 64 + 2 * 10**2 * 8
