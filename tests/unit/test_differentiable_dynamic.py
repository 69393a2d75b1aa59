"""Positions and masks of transformers of any length, as PyTorch exports them, and the gradients that pass them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from optimizer.graph.differentiable import TorchGraph
from optimizer.graph.differentiable_paths import check_gradients
from optimizer.runtime.onnx import OnnxSession

HEADER = '<ir_version: 9, opset_import: ["" : 20]>'
RNG = np.random.default_rng(0)
CONSTANTS: dict[str, Any] = {
    **{f"i{value}": np.array(value, dtype=np.int64) for value in (-1, 0, 1, 2, 4)},
    **{f"a{value}": np.array([value], dtype=np.int64) for value in (-1, 0, 1, 2)},
    "open": np.array(0.0, np.float32),
    "shut": np.array(-np.inf, np.float32),
    "yes": np.array([True]),
    "one_f": np.array(1.0, np.float32),
    "table": RNG.normal(size=(32, 6)).astype(np.float32),
}
SIZES = [(2, 9), (1, 1), (3, 17), (4, 12)]
INPUTS = "int64[batch, n] ids, int64[batch] lengths, int64[batch, n] mask"
# What `length` and `positions` are in all of them: torch.arange(ids.shape[1]).
POSITIONS = """
  shape = Shape <start = 1, end = 2> (ids)
  length = Squeeze (shape, a0)
  positions = Range (i0, length, i1)
"""
PATTERNS = {
    "arange positions": "y = Gather (table, positions)",
    "positions of every row": """
  both = Shape (ids)
  rows = Expand (positions, both)
  y = Gather (table, rows)""",
    "repeated positions": """
  rows = Shape <end = 1> (ids)
  times = Concat <axis = 0> (rows, a1)
  row = Unsqueeze (positions, a0)
  tiled = Tile (row, times)
  y = Gather (table, tiled)""",
    "mask from lengths": """
  row = Unsqueeze (positions, a0)
  column = Unsqueeze (lengths, a1)
  valid = Less (row, column)
  y = Where (valid, open, shut)""",
    "mean over what is valid": """
  row = Unsqueeze (positions, a0)
  column = Unsqueeze (lengths, a1)
  valid = Less (row, column)
  weights = Cast <to = 1> (valid)
  many = ReduceSum (weights, a1)
  least = Max (many, one_f)
  x = Gather (table, ids)
  wide = Unsqueeze (weights, a2)
  kept = Mul (x, wide)
  total = ReduceSum <keepdims = 0> (kept, a1)
  y = Div (total, least)""",
    "causal mask by tril": """
  square = Concat <axis = 0> (shape, shape)
  all = Expand (yes, square)
  lower = Trilu <upper = 0> (all, i0)
  y = Where (lower, open, shut)""",
    "causal mask by triu": """
  square = Concat <axis = 0> (shape, shape)
  full = Expand (shut, square)
  y = Trilu <upper = 1> (full, i1)""",
    "sliding window with a first token that all see": """
  row = Unsqueeze (positions, a0)
  column = Unsqueeze (positions, a1)
  distance = Sub (column, row)
  behind = GreaterOrEqual (distance, i0)
  near = Less (distance, i4)
  window = And (behind, near)
  first = Equal (row, i0)
  seen = Or (window, first)
  y = Where (seen, open, shut)""",
    "blocks": """
  block = Div (positions, i4)
  row = Unsqueeze (block, a0)
  column = Unsqueeze (block, a1)
  same = Equal (row, column)
  third = Mod (positions, i2)
  even = Equal (third, i0)
  either = Xor (same, even)
  y = Where (either, open, shut)""",
    "positions by the sum of the mask": """
  summed = CumSum (mask, i1)
  from_zero = Sub (summed, i1)
  least = Clip (from_zero, i0)
  rows = Mul (least, mask)
  y = Gather (table, rows)""",
    "positions behind padding": """
  padding = Equal (ids, i1)
  kept = Not (padding)
  count = Cast <to = 6> (kept)
  summed = CumSum (count, i1)
  counted = Mul (summed, count)
  rows = Cast <to = 7> (counted)
  y = Gather (table, rows)""",
    "the last token of each row": """
  rows = Shape <end = 1> (ids)
  batch = Squeeze (rows, a0)
  number = Range (i0, batch, i1)
  last = Sub (lengths, i1)
  first = Unsqueeze (number, a1)
  second = Unsqueeze (last, a1)
  pairs = Concat <axis = 1> (first, second)
  x = Gather (table, ids)
  y = GatherND (x, pairs)""",
    "the greatest id of each row": """
  greatest = ArgMax <axis = 1> (ids)
  picked = GatherElements <axis = 1> (ids, greatest)
  y = Gather (table, picked)""",
    "what is valid, from all rows": """
  kept = Cast <to = 9> (mask)
  where = NonZero (kept)
  pairs = Transpose <perm = [1, 0]> (where)
  x = Gather (table, ids)
  y = GatherND (x, pairs)""",
}


def graph(body: str) -> onnx.ModelProto:
    return finished(f"g ({INPUTS}) => (float y) {{ {POSITIONS} {body} }}")


def finished(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + text)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in CONSTANTS.items() if name in used)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def feed_of(batch: int, length: int, inputs: list[str]) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    lengths = rng.integers(1, length + 1, batch)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    feed = {"ids": rng.integers(0, 32, (batch, length)), "lengths": lengths, "mask": mask}
    return {name: feed[name] for name in inputs}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_positions_and_masks_are_computed_at_any_size_as_onnxruntime_does(pattern: str, tmp_path: Path) -> None:
    model = graph(PATTERNS[pattern])
    onnx.save(model, tmp_path / "model.onnx")
    check_gradients(model, learned=True)
    read = TorchGraph(model)
    with OnnxSession(tmp_path / "model.onnx", optimize=False) as session:
        for batch, length in SIZES:
            feed = feed_of(batch, length, read.inputs)
            np.testing.assert_allclose(read.run(feed)["y"].numpy(), session.infer(feed)["y"], rtol=1e-5, atol=1e-6)


def test_positions_off_by_one_are_no_agreement() -> None:
    exact, wrong = (TorchGraph(graph(PATTERNS["arange positions"])) for _ in range(2))
    feed = feed_of(2, 9, exact.inputs)
    wrong.constants["i0"] = wrong.constants["i0"] + 1
    found = wrong.run(feed)["y"].numpy()
    assert not np.allclose(exact.run(feed)["y"].numpy()[: len(found)], found, rtol=1e-5, atol=1e-6)


GRADIENTS = {
    "maximum": "y = Max (x, half)",
    "minimum": "y = Min (x, half)",
    "sums": "y = CumSum <reverse = 1> (x, i1)",
    "triangle": "y = Trilu (x)",
    "repeated": "y = Tile (x, twice)",
    "of rows": "y = GatherND (x, pairs)",
    "of elements": "y = GatherElements <axis = 1> (x, few)",
    "greatest": "y, z = TopK (x, a2)",
    "least": "y = ReduceMin (x, a1)",
    "product": "y = ReduceProd (x, a1)",
    "put in place": "y = ScatterND (x, pairs, values)",
    "added in place": 'y = ScatterElements <axis = 1, reduction = "add"> (x, few, x)',
    "remainder": "y = Mod <fmod = 1> (x, half)",
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_float_that_passes_has_the_gradient_of_its_differences(name: str) -> None:
    import torch

    model = onnx.parser.parse_model(f"{HEADER} g (double[3, 4] x) => (double y) {{ {GRADIENTS[name]} }}")
    constants = {
        **{"i1": np.array(1), "a1": np.array([1]), "a2": np.array([2]), "half": np.array(0.4)},
        **{"pairs": np.array([[0, 1], [2, 3]]), "values": np.array([3.0, 4.0]), "twice": np.array([2, 1])},
        "few": np.array([[0, 1, 1, 3], [2, 2, 0, 1], [0, 3, 2, 1]]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in constants.items())
    read = TorchGraph(model)
    read.inputs = []  # given as what is learned
    x = torch.tensor(np.random.default_rng(5).normal(size=(3, 4)), requires_grad=True)
    compute = partial(lambda value: read.run({}, {"x": value})["y"])
    assert torch.autograd.gradcheck(compute, (x,))


def test_a_row_with_everything_masked_spoils_no_gradient() -> None:
    """scaled_dot_product_attention is exported so: NaN where nothing is left to attend to, and zeros in its place."""
    import torch

    model = finished("g (float[2, 3] x) => (float y) { s = Softmax (x)\n e = IsNaN (s)\n y = Where (e, open, s) }")
    read = TorchGraph(model)
    read.inputs = []
    infinite = -np.inf
    x = torch.tensor([[infinite] * 3, [0.5, infinite, -1.0]], requires_grad=True)
    found = read.run({}, {"x": x})["y"]
    assert found.detach()[0].tolist() == [0.0, 0.0, 0.0]
    found.square().sum().backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert bool((x.grad[1][[0, 2]] != 0).all())
    assert bool(x.grad.isfinite().all())
    plain = x.detach().clone().requires_grad_()  # the twin: softmax by itself
    torch.where(plain.softmax(-1).isnan(), 0.0, plain.softmax(-1)).square().sum().backward()
    assert plain.grad is not None
    assert bool(plain.grad[0].isnan().all())
