"""Small graphs and samples for the tests of calibration, quantization, cost and receipt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from optimizer.calibration.estimators import Estimate, minmax
from optimizer.calibration.histogram import RunningHistogram
from optimizer.data.samples import Sample, Samples
from optimizer.graph.index import GraphIndex
from optimizer.graph.quantize import activations

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'

# conv-relu-pool twice, then two Gemm: the demo's network in miniature.
SMALL_CNN = """g (float[batch, 3, 8, 8] image) => (float[batch, 10] logits) {
  c1 = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
  r1 = Relu (c1)
  p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
  c2 = Conv <pads = [1, 1, 1, 1]> (p1, w2, b2)
  r2 = Relu (c2)
  p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
  flat = Flatten (p2)
  g1 = Gemm <transB = 1> (flat, w3, b3)
  r3 = Relu (g1)
  logits = Gemm (r3, w4, b4)
}"""
SMALL_CNN_WEIGHTS = {
    "w1": (8, 3, 3, 3), "b1": (8,), "w2": (16, 8, 3, 3), "b2": (16,),
    "w3": (32, 64), "b3": (32,), "w4": (32, 10), "b4": (10,),
}  # fmt: skip

# A residual block: its sum is read by the next block's convolution and by its sum.
RESIDUAL = """g (float[batch, 3, 16, 16] image) => (float[batch, 16, 16, 16] features) {
  c0 = Conv <pads = [1, 1, 1, 1]> (image, w0, b0)
  r0 = Relu (c0)
  c1 = Conv <pads = [1, 1, 1, 1]> (r0, w1, b1)
  r1 = Relu (c1)
  c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
  s1 = Add (c2, r0)
  r2 = Relu (s1)
  c3 = Conv <pads = [1, 1, 1, 1]> (r2, w3, b3)
  s2 = Add (c3, r2)
  features = Relu (s2)
}"""
RESIDUAL_WEIGHTS = {
    "w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3), "b1": (16,),
    "w2": (16, 16, 3, 3), "b2": (16,), "w3": (16, 16, 3, 3), "b3": (16,),
}  # fmt: skip


# Queries and keys are scaled and masked, the way exporters write attention.
ATTENTION = """g (float[batch, 16, 32] image) => (float[batch, 16, 32] y) {
  q = MatMul (image, w0)
  k = MatMul (image, w1)
  v = MatMul (image, w2)
  kt = Transpose <perm = [0, 2, 1]> (k)
  s = MatMul (q, kt)
  h = Mul (s, half)
  m = Add (h, mask)
  p = Softmax (m)
  c = MatMul (p, v)
  y = MatMul (c, w3)
}"""

ATTENTION_WEIGHTS = {**{f"w{i}": (32, 32) for i in range(4)}, "half": (), "mask": (16, 16)}


# A pool behind a Concat, whose first input another layer reads as well.
CONCAT = """g (float[batch, 3, 8, 8] image) => (float[batch, 4, 4, 4] y) {
  a = Conv <pads = [1, 1, 1, 1]> (image, w0)
  r = Relu (a)
  b = Conv <pads = [1, 1, 1, 1]> (r, w1)
  k = Concat <axis = 1> (r, b)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (k)
  y = Conv <pads = [1, 1, 1, 1]> (p, w2)
}"""

CONCAT_WEIGHTS = {"w0": (4, 3, 3, 3), "w1": (4, 4, 3, 3), "w2": (4, 8, 3, 3)}


def build(text: str, weights: Mapping[str, tuple[int, ...]], *, seed: int = 0, header: str = HEADER) -> onnx.ModelProto:
    """Parse a graph and give it seeded weights, whose channels differ in size as trained ones do; nodes get names."""
    model = onnx.parser.parse_model(header + text)
    rng = np.random.default_rng(seed)
    for name, shape in weights.items():
        fan = max(int(np.prod(shape[1:])), 1)
        spread = np.exp(rng.normal(size=shape[:1] + (1,) * (len(shape) - 1)))
        value = rng.normal(size=shape) * spread / np.sqrt(fan)
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.checker.check_model(model)
    return model


def small_cnn(seed: int = 0) -> onnx.ModelProto:
    return build(SMALL_CNN, SMALL_CNN_WEIGHTS, seed=seed)


def residual(seed: int = 0) -> onnx.ModelProto:
    return build(RESIDUAL, RESIDUAL_WEIGHTS, seed=seed)


def attention() -> onnx.ModelProto:
    return build(ATTENTION, ATTENTION_WEIGHTS)


def sequences(count: int = 8) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(3).normal(size=(count, 16, 32)).astype(np.float32)}


def images(size: int = 16) -> dict[str, np.ndarray]:
    return {"image": np.stack(pictures(16, size))}


class Arrays(Samples):
    """Samples of one input, from a list of arrays."""

    def __init__(self, arrays: list[np.ndarray], name: str = "image", announced: int | None = None) -> None:
        self.arrays = arrays
        self.name = name
        self.announced = len(arrays) if announced is None else announced

    def __len__(self) -> int:
        return self.announced

    def __getitem__(self, index: int) -> Sample:
        return Sample({self.name: self.arrays[index]}, 0, f"picture-{index}")

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self.arrays)))


def pictures(count: int, size: int = 8, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(3, size, size)).astype(np.float32) for _ in range(count)]


def infer(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    """Run a graph in onnxruntime exactly as written."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    path = folder / "infer.onnx"
    onnx.save(model, path)
    return list(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, dict(feed)))


def ranges_of(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], folder: Path) -> dict[str, Estimate]:
    """Return MinMax ranges of every activation, by running the graph once with all of them as outputs."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = [n for n in activations(model) if n not in feed]
    outputs = [o.name for o in probe.graph.output]
    for name in names:
        if name not in outputs:
            probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    outputs = [o.name for o in probe.graph.output]
    values = dict(zip(outputs, infer(probe, feed, folder), strict=True)) | dict(feed)
    ranges = {}
    for name, value in values.items():
        histogram = RunningHistogram()
        assert histogram.fold(value)
        ranges[name] = minmax(histogram)
    return ranges


def sqnr_db(reference: np.ndarray, value: np.ndarray) -> float:
    reference, value = reference.astype(np.float64), value.astype(np.float64)
    return float(10 * np.log10((reference**2).sum() / ((reference - value) ** 2).sum()))


def dequantized(model: onnx.ModelProto, name: str) -> list[bool]:
    """Tell of each input of a node whether it is the output of a DequantizeLinear."""
    index = GraphIndex(model)
    node = next(n for n in model.graph.node if n.name == name)
    made = [index.producers.get(i) for i in node.input]
    return [n is not None and n.op_type == "DequantizeLinear" for n in made]
