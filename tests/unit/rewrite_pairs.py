"""Operators that TensorRT lacks, each with a small graph of it and the graph that its rewrite is."""

import numpy as np

RNG = np.random.default_rng(3)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


ANGLES = 2 * np.pi * np.outer(np.arange(8), np.arange(8)) / 8
GRID = np.stack(np.meshgrid((np.arange(4) * 2 + 1) / 4 - 1, (np.arange(3) * 2 + 1) / 3 - 1), -1)
BASE = np.concatenate([GRID, np.ones((3, 4, 1))], -1).reshape(1, 12, 3).astype(np.float32)
LINES = np.arange(4)[:, None] == np.arange(4)
MASKED = np.array([True, False, True, True])
Q = {"s": np.float32(0.1), "ws": np.float32(0.2), "ys": np.float32(0.5), "zero": np.int8(0)}
QX, QW = RNG.integers(-20, 20, (2, 8)).astype(np.int8), RNG.integers(-20, 20, (8, 4)).astype(np.int8)
QI, QK = RNG.integers(-9, 9, (1, 2, 6, 6)).astype(np.int8), RNG.integers(-9, 9, (3, 2, 3, 3)).astype(np.int8)
PLANE = np.array([[[[5, 7], [13, 15]]]], np.int64)

# operator -> original, rewrite, constants of both, feed, and how the rewrite's outputs become the original's
PAIRS = {
    "AffineGrid": (
        """g (float[1,2,3] t) => (float[1,3,4,2] y) {
             size = Constant <value_ints = [1, 1, 3, 4]> ()  y = AffineGrid (t, size) }""",
        """g (float[1,2,3] t) => (float[1,3,4,2] y) {
             u = Transpose <perm = [0, 2, 1]> (t)  flat = MatMul (base, u)
             shape = Constant <value_ints = [1, 3, 4, 2]> ()  y = Reshape (flat, shape) }""",
        {"base": BASE},
        {"t": floats(1, 2, 3)},
    ),
    "BitShift": (
        'g (uint8[4] x) => (uint8[4] y) { y = BitShift <direction = "LEFT"> (x, two) }',
        "g (int64[4] x) => (int64[4] y) { y = Mul (x, four) }",
        {"two": np.array(2, np.uint8), "four": np.array(4, np.int64)},
        {"x": np.array([1, 2, 3, 60], np.uint8)},
    ),
    "CenterCropPad": (
        """g (float[6,6] x) => (float[4,4] y) {
             size = Constant <value_ints = [4, 4]> ()  y = CenterCropPad (x, size) }""",
        """g (float[6,6] x) => (float[4,4] y) {
             a = Constant <value_ints = [1, 1]> ()  b = Constant <value_ints = [5, 5]> ()  y = Slice (x, a, b) }""",
        {},
        {"x": floats(6, 6)},
    ),
    "Col2Im": (
        """g (float[1,4,9] x) => (float[1,1,4,4] y) {
             image = Constant <value_ints = [4, 4]> ()  block = Constant <value_ints = [2, 2]> ()
             y = Col2Im (x, image, block) }""",
        """g (float[1,4,9] x) => (float[1,1,4,4] y) {
             shape = Constant <value_ints = [1, 4, 3, 3]> ()  p = Reshape (x, shape)  y = ConvTranspose (p, eye) }""",
        {"eye": np.eye(4, dtype=np.float32).reshape(4, 1, 2, 2)},
        {"x": floats(1, 4, 9)},
    ),
    "Compress": (
        "g (float[4] x, bool[4] m) => (float[n] y) { y = Compress (x, m) }",
        "g (float[4] x, bool[4] m) => (float[4] y) { y = Where (m, x, zero) }",
        {"zero": np.zeros(4, np.float32)},
        {"x": floats(4), "m": MASKED},
        lambda y: y[MASKED],
    ),
    "ConvInteger": (
        "g (int8[1,2,6,6] x) => (int32[1,3,4,4] y) { y = ConvInteger (x, k) }",
        """g (float[1,2,6,6] x) => (float[1,3,4,4] y) {
             q = QuantizeLinear (x, one, zero)  d = DequantizeLinear (q, one, zero)
             w = DequantizeLinear (k, one, zero)  y = Conv (d, w) }""",
        {"k": QK, "one": np.float32(1), "zero": np.int8(0)},
        {"x": QI},
    ),
    "CumProd": (
        "g (float[2,5] x) => (float[2,5] y) { axis = Constant <value_int = 1> ()  y = CumProd (x, axis) }",
        """g (float[2,5] x) => (float[2,5] y) {
             axis = Constant <value_int = 1> ()  l = Log (x)  s = CumSum (l, axis)  y = Exp (s) }""",
        {},
        {"x": np.abs(floats(2, 5)) + np.float32(0.1)},
    ),
    "DFT": (
        "g (float[2,8,1] x) => (float[2,8,2] y) { n = Constant <value_int = 8> () y = DFT (x, n) }",
        """g (float[2,8,1] x) => (float[2,8,2] y) {
             last = Constant <value_ints = [2]> ()  f = Squeeze (x, last)
             c = MatMul (f, cosines)  s = MatMul (f, sines)
             a = Unsqueeze (c, last)  b = Unsqueeze (s, last)  y = Concat <axis = 2> (a, b) }""",
        {"cosines": np.cos(ANGLES).astype(np.float32), "sines": -np.sin(ANGLES).astype(np.float32)},
        {"x": floats(2, 8, 1)},
    ),
    "Det": (
        "g (float[3,2,2] x) => (float[3] y) { y = Det (x) }",
        """g (float[3,2,2] x) => (float[3] y) {
             shape = Constant <value_ints = [-1, 4]> ()  f = Reshape (x, shape)
             i = Constant <value_int = 0> () j = Constant <value_int = 1> ()
             k = Constant <value_int = 2> () l = Constant <value_int = 3> ()
             a = Gather <axis = 1> (f, i) b = Gather <axis = 1> (f, j)
             c = Gather <axis = 1> (f, k) d = Gather <axis = 1> (f, l)
             p = Mul (a, d)  q = Mul (b, c)  y = Sub (p, q) }""",
        {},
        {"x": floats(3, 2, 2)},
    ),
    "MatMulInteger": (
        "g (int8[2,8] x) => (int32[2,4] y) { y = MatMulInteger (x, w) }",
        """g (float[2,8] x) => (float[2,4] y) {
             q = QuantizeLinear (x, one, zero)  d = DequantizeLinear (q, one, zero)
             k = DequantizeLinear (w, one, zero)  y = MatMul (d, k) }""",
        {"w": QW, "one": np.float32(1), "zero": np.int8(0)},
        {"x": QX},
    ),
    "MaxUnpool": (
        "g (float[1,1,2,2] x) => (float[1,1,4,4] y) { y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (x, i) }",
        """g (float[1,1,2,2] x) => (float[1,1,4,4] y) {
             flat = Constant <value_ints = [1, 1, 4]> ()  shape = Constant <value_ints = [1, 1, 4, 4]> ()
             v = Reshape (x, flat)  k = Reshape (i, flat)
             f = ScatterElements <axis = 2> (zeros, k, v)  y = Reshape (f, shape) }""",
        {"i": PLANE, "zeros": np.zeros((1, 1, 16), np.float32)},
        {"x": floats(1, 1, 2, 2)},
    ),
    "NonZero": (
        "g (float[4] x, bool[4] m) => (int64[1,n] y) { y = NonZero (m) }",
        "g (float[4] x, bool[4] m) => (float[4] y) { y = Where (m, x, zero) }",
        {"zero": np.zeros(4, np.float32)},
        {"x": floats(4) + 9, "m": MASKED},
        lambda y: np.stack(np.nonzero(y)),
    ),
    "QLinearMatMul": (
        "g (int8[2,8] x) => (int8[2,4] y) { y = QLinearMatMul (x, s, zero, w, ws, zero, ys, zero) }",
        """g (int8[2,8] x) => (int8[2,4] y) {
             d = DequantizeLinear (x, s, zero)  k = DequantizeLinear (w, ws, zero)
             f = MatMul (d, k)  y = QuantizeLinear (f, ys, zero) }""",
        {"w": QW, **Q},
        {"x": QX},
    ),
    "QLinearConv": (
        "g (int8[1,2,6,6] x) => (int8[1,3,4,4] y) { y = QLinearConv (x, s, zero, k, ws, zero, ys, zero) }",
        """g (int8[1,2,6,6] x) => (int8[1,3,4,4] y) {
             d = DequantizeLinear (x, s, zero)  w = DequantizeLinear (k, ws, zero)
             f = Conv (d, w)  y = QuantizeLinear (f, ys, zero) }""",
        {"k": QK, **Q},
        {"x": QI},
    ),
    "STFT": (
        """g (float[1,32,1] x, int64 step) => (float[1,7,5,2] y) { y = STFT <onesided = 1> (x, step, window) }""",
        """g (float[1,32,1] x) => (float[1,7,5,2] y) {
             row = Constant <value_ints = [1, 1, 32]> ()  r = Reshape (x, row)
             f = Conv <strides = [4]> (r, kernels)
             shape = Constant <value_ints = [1, 2, 5, 7]> ()  p = Reshape (f, shape)
             y = Transpose <perm = [0, 3, 2, 1]> (p) }""",
        {
            "window": np.hanning(8).astype(np.float32),
            "kernels": (np.concatenate([np.cos(ANGLES[:5]), -np.sin(ANGLES[:5])]) * np.hanning(8))[:, None].astype(
                np.float32
            ),
        },
        {"x": floats(1, 32, 1), "step": np.array(4, np.int64)},
    ),
    "SplitToSequence": (
        """g (float[4,2] x) => (float[2,2] y) {
             s = SplitToSequence <axis = 0> (x, two)  i = Constant <value_int = 1> ()  y = SequenceAt (s, i) }""",
        "g (float[4,2] x) => (float[2,2] y) { first, y = Split <axis = 0, num_outputs = 2> (x) }",
        {"two": np.array(2, np.int64)},
        {"x": floats(4, 2)},
    ),
    "Unique": (
        "g (float[6] x) => (float[n] y) { y = Unique <sorted = 1> (x) }",
        """g (float[6] x) => (float[6] v, bool[6] first) {
             k = Constant <value_ints = [6]> ()  v, i = TopK <largest = 0> (x, k)
             a = Constant <value_ints = [0]> () b = Constant <value_ints = [5]> ()
             c = Constant <value_ints = [1]> () d = Constant <value_ints = [6]> ()
             before = Slice (v, a, b)  after = Slice (v, c, d)  same = Equal (before, after)
             other = Not (same)  first = Concat <axis = 0> (true, other) }""",
        {"true": np.array([True])},
        {"x": np.array([3, 1, 3, 2, 1, 5], np.float32)},
        lambda v, first: v[first],
    ),
}
