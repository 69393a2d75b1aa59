"""One layer table per compute capability, from real builds for each; 7.5 gets other kernels than its successors."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from optimizer.errors import StageError
from optimizer.graph.engine_log import table
from optimizer.graph.engine_receipt import engine_receipt, merge
from optimizer.graph.engine_tables import tables

trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")


class Lines(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, message):
        self.lines.append((severity.name, message))


def network_of(kind):
    """A convolution and a matrix product, in float or half."""
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g ({kind}[2,3,8,8] x) => ({kind}[2,4] y) '
        "{ c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  p = GlobalAveragePool (r)  f = Flatten (p)"
        "  y = Gemm (f, v) }"
    )
    dtype = np.float32 if kind == "float" else np.float16
    for node in model.graph.node:
        node.name = node.op_type
    for name, shape in (("w", (8, 3, 3, 3)), ("v", (8, 4))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, dtype), name))
    logger = Lines()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    reader = trt.OnnxParser(network, logger)
    assert reader.parse(model.SerializeToString())
    return model, logger, builder, network, reader


def config_for(builder, *capabilities):
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{name.replace('.', '')}"), index)
    return config


def test_a_build_for_several_prints_one_table_and_this_has_one_for_each():
    model, logger, builder, network, _reader = network_of("float16")
    chosen = ("7.5", "8.6", "12.0")
    assert builder.build_serialized_network(network, config_for(builder, *chosen)) is not None
    assert sum("LayerType: " in text for _, text in logger.lines) == 1
    before = list(logger.lines)
    found = tables(builder, network, {name: config_for(builder, name) for name in chosen}, logger.lines)
    assert logger.lines == before
    assert list(found) == list(chosen)
    assert found["7.5"] == table(before)  # that of the first
    for rows in found.values():
        assert {"Conv", "Gemm"} <= {name for row in rows for name in row["onnx_nodes"]}
    merged = merge({name: engine_receipt(model, rows) for name, rows in found.items()}, "fp16")
    assert merged.shares == {"fp16": 1.0}


def test_a_capability_that_does_not_build_by_itself_is_told():
    _, logger, builder, network, _reader = network_of("float")
    with pytest.raises(StageError, match=r"not for compute capability 7\.5 by itself: .*FP32 GEMM is not supported"):
        tables(builder, network, {"7.5": config_for(builder, "7.5")}, logger.lines)
    # What the failed build left behind must not reach another test of this process.
    builder.build_serialized_network(network, config_for(builder, "8.6"))
