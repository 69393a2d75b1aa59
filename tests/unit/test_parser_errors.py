"""What TensorRT refuses is told at once: every node, its operator, its PyTorch module, and what mends it."""

import onnx
import pytest
from onnx import parser

from optimizer.graph.parser_errors import build_failure, nodes_named, parse_failure
from optimizer.graph.rewrites import ONNXRUNTIME

trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")


def graph(body, modules=(), opset=20):
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>\n{body}')
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
        module = dict(modules).get(node.output[0])
        if module:
            node.metadata_props.add(key="optimizer.module", value=module)
    return model


def failure(model, folder):
    onnx.save(model, folder / "model.onnx")
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network = builder.create_network(0)
    reader = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    assert not reader.parse_from_file(str(folder / "model.onnx"))
    return reader.num_errors, parse_failure(reader, "tensorrt_rtx", "1.7", folder / "model.onnx")


def test_all_nodes_are_told_with_module_and_rewrite(tmp_path):
    body = """g (float[batch,2,2] x) => (float[batch] d, float[n] u, float[batch,2,2] e) {
        d = Det (x)  r = Relu (d)  u = Unique (r)  e = com.microsoft.FusedGelu (x) }"""
    _, error = failure(graph(body, {"d": "head.norm", "e": "blocks.0.act"}), tmp_path)
    assert error.render().splitlines() == [
        "tensorrt_rtx 1.7 cannot parse 3 nodes:",
        "  node 'node_d' (Det, module head.norm): operator not supported",
        "  node 'node_u' (Unique): operator not supported",
        "  node 'node_e' (FusedGelu, module blocks.0.act): operator not supported (no plugin of that name either)",
        "  Det: of 2x2 (3x3 alike): x[..., 0, 0] * x[..., 1, 1] - x[..., 0, 1] * x[..., 1, 0]",
        "  Unique: sort, and mark where a value differs from the one before it; pick the marked ones after the model",
        f"  FusedGelu: {ONNXRUNTIME}",
        "  Rewrite these operators in the model, or leave this target out for it.",
    ]


def test_what_the_parser_has_not_reached_is_told_too(tmp_path):
    """Its importer stops at the first node that fails; Det, Unique and the second sum stand behind it."""
    body = """g (float[batch,8,8] x, int64[1] axis) => (float[batch] d, float[n] u, float[batch,8,8] z) {
        a = HardSwish (x)  s = ReduceSum (a, axis)  d = Det (x)
        u = Unique (d)  z = Relu (x)  v = ReduceMax (z, axis) }"""
    reported, error = failure(graph(body), tmp_path)
    assert reported == 1
    lines = error.render().splitlines()
    assert lines[0] == "tensorrt_rtx 1.7 cannot parse 4 nodes:"
    told = [line.split("'")[1] for line in lines if line.startswith("  node ")]
    assert told == ["node_s", "node_d", "node_u", "node_v"]
    assert lines[1].endswith(
        "Axis input must resolve to a build-time constant (an initializer or a constant-foldable subgraph)! "
        "(UNSUPPORTED_NODE)"
    )


def test_what_cannot_be_judged_is_counted(tmp_path):
    body = """g (float[batch,8] x) => (float[n] y) {
        f = com.microsoft.FusedGelu (x)  r = Relu (f)  k = Unique (r)  y = Sqrt (k) }"""
    _, error = failure(graph(body), tmp_path)
    lines = error.render().splitlines()
    assert [line.split("'")[1] for line in lines if line.startswith("  node ")] == ["node_f", "node_k"]
    assert "  2 nodes behind these cannot be judged: the shapes between them are not known" in lines


def test_unnamed_nodes_are_told_by_their_output(tmp_path):
    model = graph("g (float[2,2] x) => (float d) { d = Det (x) }")
    model.graph.node[0].name = ""
    assert "node 'd' (Det): operator not supported" in failure(model, tmp_path)[1].render()


def test_a_node_within_a_branch_is_told(tmp_path):
    body = """g (float[3,2,2] x, bool c) => (float[3] y) {
        y = If (c) <
          then_branch = a () => (float[3] p) { p = Det (x) },
          else_branch = b () => (float[3] q) { i = Constant <value_int = 0> () q = ReduceSum <keepdims = 0> (x) }> }"""
    assert "(Det)" in failure(graph(body), tmp_path)[1].render()


def test_many_refused_nodes_are_cut_and_the_rest_named_by_operator(tmp_path):
    nodes = " ".join(f"d{i} = Det (x) " for i in range(30))
    _, error = failure(graph(f"g (float[3,2,2] x) => (float[3] d0) {{ {nodes} }}"), tmp_path)
    lines = error.render().splitlines()
    assert lines[0].endswith("cannot parse 30 nodes:")
    assert lines[21] == "  and 10 more (Det)"
    assert len(lines) == 24


CHAIN = """g (float[1,3,8,8] x, float[3,3,1,1] w) => (float[1,3,8,8] y) {
    conv = Conv (x, w)  conv_1 = Conv (conv, w)  relu = Relu (conv_1)  y = Sigmoid (relu) }"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Could not find any implementation for node {ForeignNode[node_conv_1...node_y]}.", ["conv_1", "relu", "y"]),
        ("any implementation for node {ForeignNode[node_conv + node_conv_1...node_relu]}", ["conv", "conv_1", "relu"]),
        ("node {ForeignNode[node_conv[Constant]...node_relu]}.", ["conv", "conv_1", "relu"]),
        ("Could not find any implementation for node node_conv_1 + node_relu.", ["conv_1", "relu"]),
        ("Cannot compile operation 'node_conv_1' for Turing (SM75)", ["conv_1"]),
        ("Could not infer output types: deconv: c-(f) // node_conv\n | n_groups: )", ["conv"]),
        ("no node is named here, nor node_conv_12", []),
        ("{ForeignNode[node_conv...node_of_another_graph]}", []),
    ],
)
def test_nodes_of_a_build_error_are_found(text, names):
    assert [node.output[0] for node in nodes_named(text, graph(CHAIN))] == names


def test_a_build_error_names_modules(tmp_path):
    onnx.save(graph(CHAIN, {"conv_1": "layer1.conv"}), tmp_path / "m.onnx")
    one = "Cannot compile operation 'node_conv_1' for Turing (SM75)"
    assert build_failure(one, tmp_path / "m.onnx") == ("node 'node_conv_1' (Conv, module layer1.conv)",)
    whole = "implementation for node {ForeignNode[node_conv...node_y]}"
    assert build_failure(whole, tmp_path / "m.onnx") == (
        "node 'node_conv' (Conv) to node 'node_y' (Sigmoid): 4 nodes (Conv, Relu, Sigmoid)",
    )
    assert build_failure("out of memory", tmp_path / "m.onnx") == ()


def test_a_real_build_error_is_mapped_and_mended(tmp_path):
    model = graph(
        """g (bfloat16[1,2,4,4] x) => (bfloat16[1,2,5,5] y) {
             r = Relu (x)  y = ConvTranspose (r, w) }""",
        {"y": "up.0"},
        22,
    )
    model.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, (2, 2, 2, 2), [1.0] * 16))
    lines = []

    class Lines(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            lines.append((severity.name, message))

    logger = Lines()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse(model.SerializeToString())
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    onnx.save(model, tmp_path / "m.onnx")
    said = next(text for severity, text in lines if severity == "ERROR" and "Myelin" in text)
    assert build_failure(said, tmp_path / "m.onnx") == (
        "node 'node_y' (ConvTranspose, module up.0)",
        "ConvTranspose: not in bfloat16: `keep: [ConvTranspose]` in the bf16 variant leaves it in float32",
    )
