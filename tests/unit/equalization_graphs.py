"""Graphs for the tests of equalisation: normalised, attending, convolving, with outlier channels where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from quantization_graphs import Arrays, build, infer

# Three layers read one normalisation; the values pass through heads into the output projection.
ATTENTION = """g (float[batch, length, 16] x) => (float[batch, length, 16] y) {
  n = LayerNormalization <axis = -1> (x, gamma, beta)
  q = MatMul (n, wq)
  k = MatMul (n, wk)
  v0 = MatMul (n, wv)
  v = Add (v0, bv)
  heads = Constant <value = int64[4] {0, 0, 4, 4}> ()
  flat = Constant <value = int64[3] {0, 0, 16}> ()
  qh = Reshape (q, heads)
  kh = Reshape (k, heads)
  vh = Reshape (v, heads)
  qt = Transpose <perm = [0, 2, 1, 3]> (qh)
  kt = Transpose <perm = [0, 2, 3, 1]> (kh)
  vt = Transpose <perm = [0, 2, 1, 3]> (vh)
  scores = MatMul (qt, kt)
  weights = Softmax <axis = -1> (scores)
  mixed = MatMul (weights, vt)
  back = Transpose <perm = [0, 2, 1, 3]> (mixed)
  joined = Reshape (back, flat)
  y = MatMul (joined, wo)
}"""
ATTENTION_WEIGHTS = {"gamma": (16,), "beta": (16,), "bv": (16,), **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16))}

# A feed-forward block whose normalisation is read by the shortcut as well.
BLOCK = """g (float[batch, length, 16] x) => (float[batch, length, 16] y) {
  n = LayerNormalization <axis = -1> (x, gamma, beta)
  up = MatMul (n, w1)
  upb = Add (up, b1)
  act = Gelu (upb)
  down = MatMul (act, w2)
  sum = Add (down, n)
  y = LayerNormalization <axis = -1> (sum, gamma2, beta2)
}"""
BLOCK_WEIGHTS = {"w1": (16, 64), "b1": (64,), "w2": (64, 16)}


def attention(seed: int = 0) -> onnx.ModelProto:
    return build(ATTENTION, ATTENTION_WEIGHTS, seed=seed)


def block(outlier: float, seed: int = 0) -> onnx.ModelProto:
    """A feed-forward block; two of its sixteen normalised channels are `outlier` times as large as the others."""
    model = _block(seed)
    set_constant(model, "gamma", np.where(np.arange(16) % 8 == 3, outlier, 1.0))
    w1 = constant(model, "w1")
    w1[np.arange(16) % 8 == 3] /= outlier  # as trained nets have it: the layer does not drown in them
    set_constant(model, "w1", w1)
    return model


def _block(seed: int) -> onnx.ModelProto:
    model = build(BLOCK, {"gamma": (16,), "beta": (16,), "gamma2": (16,), "beta2": (16,), **BLOCK_WEIGHTS}, seed=seed)
    rng = np.random.default_rng(seed)
    for name, value in (("gamma2", np.ones(16)), ("beta2", np.zeros(16)), ("beta", np.zeros(16))):
        set_constant(model, name, value)
    for name, shape in BLOCK_WEIGHTS.items():
        set_constant(model, name, rng.normal(size=shape) / np.sqrt(shape[0]))
    return model


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def set_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def texts(count: int, width: int = 16, seed: int = 2) -> Arrays:
    """Samples of mixed lengths."""
    rng = np.random.default_rng(seed)
    return Arrays([rng.normal(size=(3 + i % 4, width)).astype(np.float32) for i in range(count)], name="x")


def differs_by(before: onnx.ModelProto, after: onnx.ModelProto, feed: Mapping[str, np.ndarray], folder: Path) -> float:
    """Return the largest difference of any output, as a share of the output's largest value."""
    shares = []
    for expected, found in zip(infer(before, feed, folder), infer(after, feed, folder), strict=True):
        shares.append(float(np.abs(expected - found).max() / np.abs(expected).max()))
    return max(shares)
