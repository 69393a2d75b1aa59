from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantization_graphs import HEADER, build, residual, small_cnn

from optimizer.errors import StageError
from optimizer.graph.cost import macs
from optimizer.graph.shapes import REPRESENTATIVE_SIZE


def counted(text: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    return macs(build(text, shapes))


def test_a_small_cnn_costs_what_a_hand_counts() -> None:
    assert macs(small_cnn()) == {
        "node_c1": 8 * 8 * 8 * 3 * 9,
        "node_c2": 16 * 4 * 4 * 8 * 9,
        "node_g1": 64 * 32,
        "node_logits": 32 * 10,
    }


def test_a_file_and_a_model_cost_the_same(tmp_path: Path) -> None:
    onnx.save(residual(), tmp_path / "model.onnx")
    assert macs(tmp_path / "model.onnx") == macs(residual())


@pytest.mark.parametrize(
    ("text", "shapes", "expected"),
    [
        ("(float[b, 6, 8, 8] x) => (float[b, 4, 8, 8] y) { y = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w0) }",
         {"w0": (4, 3, 3, 3)}, 4 * 64 * 3 * 9),
        ("(float[b, 6, 8, 8] x) => (float[b, 4, 4, 4] y) { y = Conv <strides = [2, 2]> (x, w0) }",
         {"w0": (4, 6, 1, 1)}, 4 * 16 * 6),
        ("(float[b, 6, 8, 8] x) => (float[b, 4, 16, 16] y) { y = ConvTranspose <strides = [2, 2]> (x, w0) }",
         {"w0": (6, 4, 2, 2)}, 6 * 64 * 4 * 4),
        ("(float[b, 5] x) => (float[b, 7] y) { y = Gemm (x, w0) }", {"w0": (5, 7)}, 35),
        ("(float[b, 5] x) => (float[b, 7] y) { y = Gemm <transB = 1> (x, w0) }", {"w0": (7, 5)}, 35),
        ("(float[5, 3] x) => (float[3, 7] y) { y = Gemm <transA = 1> (x, w0) }", {"w0": (5, 7)}, 3 * 35),
        ("(float[b, 9, 5] x) => (float[b, 9, 7] y) { y = MatMul (x, w0) }", {"w0": (5, 7)}, 9 * 35),
        ("(float[b, 9, 5] x) => (float[4, 9, 7] y) { y = MatMul (x, w0) }", {"w0": (4, 5, 7)}, 4 * 9 * 35),
        ("(float[b, 9, 5] x) => (float[b, 9] y) { y = MatMul (x, w0) }", {"w0": (5,)}, 9 * 5),
    ],
)  # fmt: skip
def test_every_form_of_a_layer_is_counted(text: str, shapes: dict[str, tuple[int, ...]], expected: int) -> None:
    assert counted(f"g {text}", shapes) == {"node_y": expected}


def test_dynamic_axes_count_as_stated() -> None:
    text = "g (float[batch, length, 5] x) => (float[batch, length, 7] y) { y = MatMul (x, w0) }"
    assert counted(text, {"w0": (5, 7)}) == {"node_y": REPRESENTATIVE_SIZE * 35}


def test_a_node_without_a_name_is_named_by_its_output() -> None:
    model = small_cnn()
    for node in model.graph.node:
        node.name = ""
    assert set(macs(model)) == {"c1", "c2", "g1", "logits"}


def test_weights_in_another_file_are_not_needed(tmp_path: Path) -> None:
    onnx.save(small_cnn(), tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    assert macs(tmp_path / "model.onnx") == macs(small_cnn())


def test_a_shape_that_depends_on_data_is_refused() -> None:
    text = """g (float[4] x) => (int64[a, b] y) {
      i = NonZero (x)
      t = Transpose (i)
      y = MatMul (i, t)
    }"""
    model = onnx.parser.parse_model(HEADER + text)
    with pytest.raises(StageError, match=r"node 'y' \(MatMul\): the shape of 'i' cannot be inferred"):
        macs(model)


def test_a_dequantized_model_costs_what_its_parent_costs(tmp_path: Path) -> None:
    from quantization_graphs import pictures, ranges_of

    from optimizer.graph.quantize import quantize

    feed = {"image": np.stack(pictures(8))}
    for dialect in ("tensorrt", "cpu"):
        model = small_cnn()
        assert macs(quantize(model, ranges_of(model, feed, tmp_path), dialect).model) == macs(small_cnn())  # type: ignore[arg-type]
