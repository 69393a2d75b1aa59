"""Small graphs and comparisons that the tests of float16 share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimizer.data.samples import Array, Sample, Samples
from optimizer.graph.rounding import emulate_rounding
from optimizer.judge import open_judge
from optimizer.runtime.onnx import OnnxSession

Arrays = dict[str, object]


class Split(Samples):
    """Samples from the rows of arrays by input name, over again where `count` asks for more."""

    def __init__(self, count: int | None = None, /, **inputs: Sequence[Array]) -> None:
        self.inputs = inputs
        self.rows = len(next(iter(inputs.values())))
        self.count = self.rows if count is None else count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample({name: rows[index % self.rows] for name, rows in self.inputs.items()}, 0, str(index))


def model(text: str, **constants: object) -> onnx.ModelProto:
    built = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        built.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(built, full_check=True)
    return built


def run(path: Path, **feed: NDArray[np.generic]) -> NDArray[np.generic]:
    session, _ = open_judge(path)
    with session:
        return session.infer(feed)["y"]


def sqnr_db(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    noise = float(np.sum((expected.astype(np.float64) - found) ** 2))
    return float(10 * np.log10(np.sum(expected.astype(np.float64) ** 2) / noise)) if np.isfinite(noise) else -np.inf


CNN = """g (float[batch, 3, 8, 8] x) => (float[batch, 10] y) {
  [conv] a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
  [relu] r = Relu(a)
  [pool] p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
  [flat] f = Flatten(p)
  [fc] y = Gemm(f, v, c)
}"""


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def cnn(scale: float = 0.1) -> onnx.ModelProto:
    return model(
        CNN,
        w=normal(16, 3, 3, 3, scale=scale),
        b=normal(16, seed=1),
        v=normal(256, 10, seed=2, scale=scale),
        c=normal(10),
    )


def half_model(
    node: onnx.NodeProto | Sequence[onnx.NodeProto],
    feed: dict[str, NDArray[np.generic]],
    constants: dict[str, object],
    output_type: int = TensorProto.FLOAT16,
) -> onnx.ModelProto:
    """A graph whose tensors are float16 throughout; its output is `y`."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    nodes = [node] if isinstance(node, onnx.NodeProto) else list(node)
    output = helper.make_tensor_value_info("y", output_type, None)
    graph = helper.make_graph(
        nodes, "g", inputs, [output], [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def emulate(model: onnx.ModelProto, folder: Path, feed: dict[str, NDArray[np.generic]]) -> NDArray[np.generic]:
    source, emulated = folder / "source.onnx", folder / "emulated.onnx"
    onnx.save(model, source)
    emulate_rounding(source, emulated)
    onnx.checker.check_model(emulated, full_check=True)
    with OnnxSession(emulated, optimize=False) as session:
        return session.infer(feed)["y"]
