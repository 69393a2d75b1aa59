from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from quantization_graphs import HEADER, build, residual, small_cnn

from optimizer.graph.cost import count
from optimizer.graph.shapes import REPRESENTATIVE_SIZE


def counted(text: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    return count(build(text, shapes)).macs


def test_a_small_cnn_costs_what_a_hand_counts() -> None:
    assert count(small_cnn()).macs == {
        "node_c1": 8 * 8 * 8 * 3 * 9,
        "node_c2": 16 * 4 * 4 * 8 * 9,
        "node_g1": 64 * 32,
        "node_logits": 32 * 10,
    }


def test_a_file_and_a_model_cost_the_same(tmp_path: Path) -> None:
    onnx.save(residual(), tmp_path / "model.onnx")
    assert count(tmp_path / "model.onnx").macs == count(residual()).macs


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
    assert set(count(model).macs) == {"c1", "c2", "g1", "logits"}


def test_weights_in_another_file_are_not_needed(tmp_path: Path) -> None:
    onnx.save(small_cnn(), tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    assert count(tmp_path / "model.onnx").macs == count(small_cnn()).macs


def parsed(text: str) -> onnx.ModelProto:
    """A graph whose nodes have no names: their first outputs name them."""
    return onnx.parser.parse_model(HEADER + text)


def test_a_shape_that_depends_on_data_is_told_and_not_guessed() -> None:
    text = """g (float[4] x, float[4, 4] w) => (float[c, d] z) {
      i = NonZero (x)
      t = Transpose (i)
      f = Cast <to = 1> (t)
      y = MatMul (i, t)
      z = MatMul (w, w)
    }"""
    work = count(parsed(text))
    assert work.macs == {"y": 1, "z": 64}
    assert work.uncounted == {"y"}
    assert work.notes == ("the multiply-accumulates of y cannot be counted: the shape of 'i' cannot be inferred",)


def test_what_cannot_be_counted_counts_its_weights_once() -> None:
    text = """g (float[4, 8] x, bool[4] c, float[8, 6] w) => (float[k, 6] y) {
      s = Compress <axis = 0> (x, c)
      y = Gemm (s, w)
    }"""
    work = count(parsed(text))
    assert (work.macs, work.uncounted) == ({"y": 48}, {"y"})


@pytest.mark.parametrize(
    ("operator", "gates", "directions"),
    [("LSTM", 4, 1), ("LSTM", 4, 2), ("GRU", 3, 1), ("GRU", 3, 2), ("RNN", 1, 1)],
)
def test_recurrent_layers_are_counted(operator: str, gates: int, directions: int) -> None:
    direction = "bidirectional" if directions == 2 else "forward"
    text = f"""g (float[9, 2, 5] x, float[{directions}, {gates * 7}, 5] w, float[{directions}, {gates * 7}, 7] r)
        => (float[s, d, b, h] y) {{ y = {operator} <hidden_size = 7, direction = "{direction}"> (x, w, r) }}"""
    assert count(parsed(text)).macs == {"y": 9 * 2 * directions * gates * 7 * (5 + 7)}


@pytest.mark.parametrize(
    ("equation", "left", "right", "expected"),
    [
        ("bij,bjk->bik", "2, 3, 4", "2, 4, 5", 2 * 3 * 4 * 5),
        ("bij, bkj -> bik", "2, 3, 4", "2, 5, 4", 2 * 3 * 5 * 4),
        ("...ij,...jk->...ik", "6, 2, 3, 4", "2, 4, 5", 6 * 2 * 3 * 4 * 5),
        ("...d,de->...e", "2, 3, 4", "4, 5", 2 * 3 * 4 * 5),
        ("ij,jk", "3, 4", "4, 5", 3 * 4 * 5),
        ("ij,ij->", "3, 4", "3, 4", 3 * 4),
    ],
)
def test_an_einsum_of_two_is_the_product_of_its_indices(equation: str, left: str, right: str, expected: int) -> None:
    text = f'g (float[{left}] a, float[{right}] b) => (float y) {{ y = Einsum <equation = "{equation}"> (a, b) }}'
    assert count(parsed(text)).macs == {"y": expected}


def test_an_einsum_of_one_multiplies_nothing_and_of_three_is_unknown() -> None:
    one = 'g (float[3, 4] a) => (float[4, 3] y) { y = Einsum <equation = "ij->ji"> (a) }'
    assert count(parsed(one)).macs == {}
    three = 'g (float[3, 4] a, float[4, 4] b) => (float[3, 4] y) { y = Einsum <equation = "ij,jk,kl->il"> (a, b, b) }'
    assert count(parsed(three)).uncounted == {"y"}


def looped(trips: str = "trips", step: str = "so = Tanh (u)") -> onnx.ModelProto:
    """A layer, a Loop with a layer in it, and a layer behind the Loop."""
    text = f"""g (float[batch, 8] x, int64 any) => (float[batch, k] y) <int64 trips = {{3}}, bool go = {{1}}> {{
      h = MatMul (x, w0)
      l = Loop ({trips}, go, h) <body = b (int64 i, bool on, float[m, n] st) => (bool oo, float[q, p] so) {{
        oo = Identity (on)
        u = MatMul (st, w0)
        {step}
      }}>
      y = MatMul (l, w1)
    }}"""
    model = onnx.parser.parse_model(HEADER + text)
    for name, shape in {"w0": (8, 8), "w1": (8, 2)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    return model


def test_the_body_of_a_loop_counts_once_per_iteration_and_what_stands_behind_it_counts() -> None:
    work = count(looped())
    assert work.macs == {"h": 64, "l/u": 3 * 64, "y": 16}
    assert (work.uncounted, work.notes) == (frozenset(), ())


def test_a_loop_without_a_constant_count_is_one_iteration_and_says_so() -> None:
    work = count(looped("any"))
    assert work.macs == {"h": 64, "l/u": 64, "y": 16}
    assert work.notes == ("Loop l counts as one iteration: how many it makes is not constant",)


def test_a_loop_whose_state_grows_is_not_taken_for_its_first_iteration() -> None:
    """The twin: a state that keeps its shape is what makes the count behind the Loop right."""
    work = count(looped(step="so = Concat <axis = 0> (u, u)"))
    assert work.uncounted == {"l/u", "y"}
    assert work.macs["h"] == 64


def test_of_an_if_the_larger_branch_counts() -> None:
    text = """g (float[2, 8] x, bool c, float[8, 8] w, float[8, 3] small) => (float[2, k] y) {
      y = If (c) <
        then_branch = t () => (float[2, m] a) { a = MatMul (x, small) },
        else_branch = e () => (float[2, m] b) { h = MatMul (x, w)  b = MatMul (h, w) }
      >
    }"""
    assert count(parsed(text)).macs == {"y/h": 128, "y/b": 128}


def test_the_body_of_a_scan_counts_once_per_step() -> None:
    text = """g (float[2, 8] s, float[5, 2, 8] x, float[8, 8] w) => (float[2, 8] last, float[5, 2, 8] y) {
      last, y = Scan <num_scan_inputs = 1, body = b (float[2, 8] st, float[2, 8] xt)
          => (float[2, 8] so, float[2, 8] yt) {
        u = MatMul (st, w)
        so = Add (u, xt)
        yt = Identity (so)
      }> (s, x)
    }"""
    assert count(parsed(text)).macs == {"last/u": 5 * 2 * 64}


def test_nodes_of_one_name_are_all_counted() -> None:
    model = small_cnn()
    for node in model.graph.node:
        node.name = "same"
    assert sum(count(model).macs.values()) == sum(count(small_cnn()).macs.values())


def test_a_layer_of_a_foreign_operator_set_is_unknown() -> None:
    model = build("g (float[b, 5] x) => (float[b, 7] y) { y = MatMul (x, w0) }", {"w0": (5, 7)})
    model.graph.node[0].op_type, model.graph.node[0].domain = "TheirLayer", "nobody"
    assert (count(model).macs, count(model).uncounted) == ({"node_y": 35}, {"node_y"})


def test_a_dequantized_model_costs_what_its_parent_costs(tmp_path: Path) -> None:
    from quantization_graphs import pictures, ranges_of

    from optimizer.graph.quantize import quantize

    feed = {"image": np.stack(pictures(8))}
    for dialect in ("tensorrt", "cpu", "openvino"):
        model = small_cnn()
        assert count(quantize(model, ranges_of(model, feed, tmp_path), dialect).model).macs == count(small_cnn()).macs  # type: ignore[arg-type]
