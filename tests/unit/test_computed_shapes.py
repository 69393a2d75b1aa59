"""Multiply-accumulates behind shapes that the graph computes: those of the same net with fixed sizes, or unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import InferenceSession
from quantization_graphs import HEADER, build
from torch import nn
from torch.nn import functional

from optimizer.graph.cost import count
from optimizer.graph.receipt import graph_receipt, onnxruntime_receipt
from optimizer.graph.shapes import REPRESENTATIVE_SIZE, infer, infer_computed

HALF = {"two": 2, "axis": [1], "last": [-1], "heads": [4]}


def parsed(text: str, constants: dict[str, object] | None = None) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + text)
    for name, value in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
    return model


class Series(nn.Module):
    """Convolutions of stride 2, then attention over what they leave of the length."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 16, 5, 2, 2)
        self.body = nn.Conv1d(16, 16, 5, 2, 2)
        self.qkv, self.proj, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        x = self.body(functional.relu(self.stem(series))).transpose(1, 2)
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.head((x + self.proj(y.transpose(1, 2).reshape(b, t, d))).mean(1))
        return out


def exported(path: Path, batch: int, length: int, *, dynamic: bool) -> Path:
    axes = ({0: torch.export.Dim("batch", min=1, max=32), 2: torch.export.Dim("length", min=16, max=256)},)
    torch.manual_seed(0)
    program = torch.onnx.export(
        Series().eval(),
        (torch.randn(batch, 3, length),),
        dynamo=True,
        dynamic_shapes=axes if dynamic else None,
        input_names=["series"],
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    return path


@pytest.mark.filterwarnings("ignore")
def test_attention_under_a_dynamic_length_counts_as_under_a_fixed_one(tmp_path: Path) -> None:
    free = exported(tmp_path / "free.onnx", 2, 32, dynamic=True)
    fixed = exported(tmp_path / "fixed.onnx", 1, REPRESENTATIVE_SIZE, dynamic=False)
    assert sorted(count(free).macs.values()) == sorted(count(fixed).macs.values())
    assert (count(free).uncounted, count(free).notes) == (frozenset(), ())
    for receipt in (graph_receipt, onnxruntime_receipt):
        assert receipt(free).shares == receipt(fixed).shares == {"fp32": 1.0}


def windows(rows: str) -> onnx.ModelProto:
    """Products of what a Reshape to half the length returns; `rows` is what that half is made of."""
    text = f"""g (float[batch, length, 8] x) => (float[a, b, c, d] z) {{
      whole = Shape <start = 1, end = 2> (x)
      {rows}
      size = Shape <start = 0, end = 1> (x)
      shape = Concat <axis = 0> (size, half, heads, last)
      r = Reshape (x, shape)
      t = Transpose <perm = [0, 1, 3, 2]> (r)
      z = MatMul (r, t)
    }}"""
    return parsed(text, HALF)


@pytest.mark.parametrize(
    "rows",
    [
        "half = Div (whole, two)",
        "one = Squeeze (whole, axis0)  h = Div (one, two)  half = Unsqueeze (h, axis0)",
        "f = Cast <to = 1> (whole)  g = Sqrt (f)  h = Mul (g, g)  i = Cast <to = 7> (h)  half = Div (i, two)",
    ],
)
def test_a_shape_that_is_divided_is_known(rows: str) -> None:
    model = windows(rows)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axis0"))
    work = count(model)
    # batch 1, half of 64, 4 heads, 4 values each: r (4, 4) by its transpose
    assert (work.macs, work.uncounted) == ({"z": REPRESENTATIVE_SIZE // 2 * 4 * 4 * 4}, frozenset())


def test_a_shape_that_is_read_from_values_stays_unknown() -> None:
    """The twin: evaluated is what is made of shapes, and no input is made up."""
    work = count(windows("m = ReduceMax <keepdims = 0> (x)  i = Cast <to = 7> (m)  half = Reshape (i, axis)"))
    assert work.uncounted == {"z"}
    assert work.notes == ("the multiply-accumulates of z cannot be counted: the shape of 'r' cannot be inferred",)


def test_a_shape_of_random_values_stays_unknown() -> None:
    rows = "n = RandomUniform <shape = [1], low = 2.0, high = 30.0> ()  half = Cast <to = 7> (n)"
    assert count(windows(rows)).uncounted == {"z"}


@pytest.mark.parametrize("by", [2, -2])
@pytest.mark.parametrize("value", [7, -7])
def test_integers_are_divided_as_runtimes_do(value: int, by: int) -> None:
    text = "g () => (int64[1] y, int64[a, b] z) { y = Div (value, by)  z = NonZero (value) }"  # z keeps inference busy
    model = parsed(text, {"value": [value], "by": by})
    held = infer(model)["y"].value
    assert held is not None
    executed = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], {})
    assert numpy_helper.to_array(held).tolist() == executed[0].tolist()


def test_a_shape_that_cannot_be_computed_stays_unknown() -> None:
    """The fourth of one size: whoever executes this graph refuses it, counting it does not fail."""
    far = parsed("g () => (int64[1] y) { y = Gather (axis, heads) }", {"axis": [1], "heads": [4]})
    assert infer(far)["y"].value is None
    for rows in ("half = Gather (whole, heads)", "none = Sub (two, two)  half = Div (whole, none)"):
        assert count(windows(rows)).uncounted == {"z"}


@pytest.mark.parametrize("operator", ["NonZero (x)", "Compress <axis = 1> (x, c)"])
def test_what_depends_on_data_is_not_executed_to_be_counted(operator: str) -> None:
    text = f"""g (float[8, length] x, bool[length] c) => (float[a, b] z) {{
      found = {operator}
      s = Shape (found)
      h = Div (s, two)
      e = Cast <to = 1> (found)
      t = Transpose (e)
      z = MatMul (e, t)
    }}"""
    assert count(parsed(text, {"two": 2})).uncounted == {"z"}


def test_a_convolution_over_a_dynamic_length_counts_as_over_a_fixed_one() -> None:
    text = """g (float[{}, 3, {}] x) => (float[a, b, c] y) {{
      h = Conv <strides = [2], pads = [2, 2]> (x, w0)
      s = Shape <start = 2> (x)
      n = Div (s, two)
      p = Concat <axis = 0> (rows, channels, n)
      r = Reshape (h, p)
      y = Conv <pads = [1, 1]> (r, w1)
    }}"""
    made = []
    shapes = {"w0": (8, 3, 5), "w1": (4, 8, 3), "two": (), "rows": (1,), "channels": (1,)}
    for sizes in (("batch", "length"), (1, REPRESENTATIVE_SIZE)):
        model = build(text.format(*sizes), shapes)
        for tensor, value in zip(list(model.graph.initializer)[2:], (2, [-1], [8]), strict=True):
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.int64), tensor.name))
        made.append(count(model))
    assert made[0].macs == made[1].macs == {"node_h": 8 * 32 * 15, "node_y": 4 * 32 * 24}
    assert not made[0].uncounted


def test_a_batch_is_one_wherever_it_stands() -> None:
    text = (
        "g (float[batch, 8] x, float[length, batch, 8] m) => (float[a, b, c] y) { s = Add (m, x) y = MatMul (s, w0) }"
    )
    assert count(build(text, {"w0": (8, 8)})).macs == {"node_y": 64}  # its length is an axis that comes first


def test_the_body_of_an_if_knows_shapes_that_are_computed_outside() -> None:
    text = """g (float[batch, length, 8] x, bool c) => (float[a, b, d] z) {
      whole = Shape <start = 1, end = 2> (x)
      half = Div (whole, two)
      shape = Concat <axis = 0> (last, half, heads)
      z = If (c) <
        then_branch = t () => (float[i, j, k] p) { r = Reshape (x, shape) q = Transpose <perm = [0, 2, 1]> (r)
          p = MatMul (r, q) },
        else_branch = e () => (float[i, j, k] o) { o = Reshape (x, shape) }
      >
    }"""
    work = count(parsed(text, HALF))  # 512 values as 4 x 32 x 4
    assert (work.macs, work.uncounted) == ({"z/p": 4 * 32 * 4 * 32}, frozenset())


def test_a_loop_over_a_length_counts_every_step() -> None:
    text = """g (float[batch, length, 8] x, float[2, 8] start, float[8, 8] w, bool go) => (float[2, 8] y) {
      whole = Shape <start = 1, end = 2> (x)
      half = Div (whole, two)
      trips = Squeeze (half)
      y = Loop (trips, go, start) <body = b (int64 i, bool on, float[2, 8] st) => (bool oo, float[2, 8] so) {
        oo = Identity (on)
        so = MatMul (st, w)
      }>
    }"""
    work = count(parsed(text, HALF))
    assert (work.macs, work.notes) == ({"y/so": REPRESENTATIVE_SIZE // 2 * 2 * 8 * 8}, ())


def test_axes_are_filled_for_counting_alone() -> None:
    """What rewrites a graph must not take a representative size for one that is known."""
    model = windows("half = Div (whole, two)")
    for found in (infer(model, concrete=False), infer_computed(model)):
        assert found["x"].shape == (None, None, 8)
        assert found["half"].value is None
    assert infer(model)["r"].shape == (1, REPRESENTATIVE_SIZE // 2, 4, 4)
