"""Every rewrite that an error proposes: the original is refused, the rewrite builds, and both compute the same."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser
from onnx.reference import ReferenceEvaluator
from rewrite_pairs import PAIRS, Q, floats

from optimizer.graph.rewrites import BFLOAT16, ONNXRUNTIME, REWRITES, TYPES, rewrite_for

trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")


def text(body, opset=20, domains=""):
    return parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}{domains}]>\n{body}')


@pytest.fixture(scope="module")
def builder():
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    return trt.Builder(logger), logger


def parses(builder, model):
    """Return the network, or the operators and texts that the parser refuses."""
    network = builder[0].create_network(0)
    reader = trt.OnnxParser(network, builder[1])
    if reader.parse(model.SerializeToString()):
        return network, []
    errors = [reader.get_error(i) for i in range(reader.num_errors)]
    return None, [(error.node_operator(), error.desc()) for error in errors]


def builds(builder, model):
    network, refused = parses(builder, model)
    assert not refused
    config = builder[0].create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    return builder[0].build_serialized_network(network, config) is not None


def with_constants(model, arrays):
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


ALIKE = {
    "SequenceInsert": "SplitToSequence",
    "SoftmaxCrossEntropyLoss": "NegativeLogLikelihoodLoss",
    "BitwiseNot": "BitwiseAnd",
    "BitwiseOr": "BitwiseAnd",
    "BitwiseXor": "BitwiseAnd",
}
SHOWN_APART = {"NegativeLogLikelihoodLoss", "BitwiseAnd", "DynamicQuantizeLinear", "Upsample"}


def pair(operator):
    first, second, arrays, feed, *then = PAIRS[operator]
    models = []
    for body, opset in ((first, 26 if operator == "CumProd" else 20), (second, 20)):
        model = text(body, opset)
        read = {name for node in model.graph.node for name in node.input}
        models.append(with_constants(model, {n: np.asarray(a) for n, a in arrays.items() if n in read}))
    return *models, feed, then[0] if then else lambda *found: found[0]


def computed(model, feed):
    wanted = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    cast = {n: np.asarray(feed[n], helper.tensor_dtype_to_np_dtype(kind)) for n, kind in wanted.items()}
    return ReferenceEvaluator(model).run(None, cast)


@pytest.mark.parametrize("operator", sorted(PAIRS))
def test_the_rewrite_builds_and_computes_the_same(operator, builder):
    original, rewrite, feed, after = pair(operator)
    network, refused = parses(builder, original)
    assert network is None
    assert refused[0][0] == operator
    assert rewrite_for(operator, "", refused[0][1]) == REWRITES[operator]
    assert builds(builder, rewrite)
    found = np.asarray(after(*computed(rewrite, feed)), np.float64)
    # float32 sums of at most 32 terms in another order
    np.testing.assert_allclose(found, np.asarray(computed(original, feed)[0], np.float64), rtol=1e-4, atol=1e-5)


def test_another_rewrite_does_not_compute_the_same():
    original, rewrite, feed, after = pair("Det")
    wrong = computed(rewrite, {"x": feed["x"][:, ::-1]})  # rows exchanged: the other sign
    assert np.abs(after(*wrong) - computed(original, feed)[0]).max() > 0.01


def test_every_entry_is_shown():
    assert set(PAIRS) | set(ALIKE) | SHOWN_APART == set(REWRITES)
    assert all(REWRITES[operator] == REWRITES[other] for operator, other in ALIKE.items())


def refuses(builder, body, operator, opset=20):
    network, refused = parses(builder, text(body, opset))
    assert network is None
    assert operator in {name for name, _ in refused}


def test_bits_of_truth_values_are_logical_operators(builder):
    for operator, logical in (("BitwiseAnd", "And"), ("BitwiseOr", "Or"), ("BitwiseXor", "Xor")):
        refuses(builder, f"g (int32[4] x, int32[4] z) => (int32[4] y) {{ y = {operator} (x, z) }}", operator)
        assert builds(builder, text(f"g (bool[4] x, bool[4] z) => (bool[4] y) {{ y = {logical} (x, z) }}"))
    refuses(builder, "g (int32[4] x) => (int32[4] y) { y = BitwiseNot (x) }", "BitwiseNot")
    assert builds(builder, text("g (bool[4] x) => (bool[4] y) { y = Not (x) }"))
    bit = text("g (int64[4] x) => (int64[4] y) { h = Div (x, four)  y = Mod (h, two) }")
    bit = with_constants(bit, {"four": np.array(4, np.int64), "two": np.array(2, np.int64)})
    assert builds(builder, bit)
    assert computed(bit, {"x": [1, 4, 7, 8]})[0].tolist() == [(x & 4) >> 2 for x in (1, 4, 7, 8)]


def test_losses_leave_the_model(builder):
    refuses(
        builder,
        "g (float[2,5] x, int64[2] t) => (float y) { y = NegativeLogLikelihoodLoss (x, t) }",
        "NegativeLogLikelihoodLoss",
    )
    refuses(
        builder,
        "g (float[2,5] x, int64[2] t) => (float y) { y = SoftmaxCrossEntropyLoss (x, t) }",
        "SoftmaxCrossEntropyLoss",
    )
    assert builds(builder, text("g (float[2,5] x) => (float[2,5] y) { y = LogSoftmax <axis = 1> (x) }"))


def test_dynamic_quantization_is_fixed_scales(builder):
    refuses(builder, "g (float[4] x) => (uint8[4] y) { y, s, z = DynamicQuantizeLinear (x) }", "DynamicQuantizeLinear")
    fixed = "g (float[4] x) => (float[4] y) { q = QuantizeLinear (x, s, zero)  y = DequantizeLinear (q, s, zero) }"
    assert builds(builder, with_constants(text(fixed), {n: np.asarray(Q[n]) for n in ("s", "zero")}))


def test_upsample_of_an_old_graph_is_converted(builder):
    old = text('g (float[1,1,2,2] x) => (float[1,1,4,4] y) { y = Upsample <mode = "nearest"> (x, f) }', 9)
    old = with_constants(old, {"f": np.array([1, 1, 2, 2], np.float32)})
    new = onnx.version_converter.convert_version(old, 13)
    assert [node.op_type for node in new.graph.node if node.op_type != "Constant"] == ["Resize"]
    assert builds(builder, new)


def test_bfloat16_of_two_operators(builder):
    body = "g (bfloat16[1,2,4,4] x) => (bfloat16[1,2,4,4] y) { y = HardSwish (x) }"
    _, refused = parses(builder, text(body, 22))
    assert rewrite_for("HardSwish", "", refused[0][1]) == BFLOAT16["HardSwish"]
    kept = """g (bfloat16[1,2,4,4] x) => (bfloat16[1,2,4,4] y) {
                f = Cast <to = 1> (x)  h = HardSwish (f)  y = Cast <to = 16> (h) }"""
    written = """g (bfloat16[1,2,4,4] x) => (bfloat16[1,2,4,4] y) {
                   d = Div (x, six)  a = Add (d, half)  c = Clip (a, zero, one)  y = Mul (x, c) }"""
    model = text(written, 22)
    for name, value in (("six", 6.0), ("half", 0.5), ("zero", 0.0), ("one", 1.0)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.BFLOAT16, (), [value]))
    assert builds(builder, text(kept, 22))
    assert builds(builder, model)
    assert rewrite_for("HardSwish", "", "false") is None


def test_bfloat16_transposed_convolution_builds_in_float32(builder):
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, (2, 2, 2, 2), np.ones(16))
    bad = text("g (bfloat16[1,2,4,4] x) => (bfloat16[1,2,5,5] y) { y = ConvTranspose (x, w) }", 22)
    bad.graph.initializer.append(weight)
    assert not builds(builder, bad)
    good = text(
        """g (bfloat16[1,2,4,4] x) => (bfloat16[1,2,5,5] y) {
             f = Cast <to = 1> (x)  c = ConvTranspose (f, w)  y = Cast <to = 16> (c) }""",
        22,
    )
    assert builds(builder, with_constants(good, {"w": np.ones((2, 2, 2, 2), np.float32)}))
    assert rewrite_for("ConvTranspose", "", "bf16[1,2]") == BFLOAT16["ConvTranspose"]


def test_other_integers_are_cast(builder):
    unsigned = "g (float[4] x) => (float[4] y) { u = Cast <to = 12> (x)  y = Cast <to = 1> (u) }"
    _, refused = parses(builder, text(unsigned))
    assert rewrite_for("Cast", "", refused[0][1]) == TYPES
    assert builds(builder, text(unsigned.replace("to = 12", "to = 7")))


def test_operators_of_onnxruntime_come_from_its_optimisation(builder, tmp_path):
    import onnxruntime as ort

    model = text(
        """g (float[1,2,4,4] x) => (float[1,2,2,2] y) { c = Conv (x, w)  y = LeakyRelu <alpha = 0.1> (c) }""",
    )
    model = with_constants(model, {"w": floats(2, 2, 3, 3)})
    refused = {}
    for level in ("BASIC", "EXTENDED"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(tmp_path / level)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        refused[level] = parses(builder, onnx.load(tmp_path / level))[1]
    assert not refused["BASIC"]
    assert [operator for operator, _ in refused["EXTENDED"]] == ["FusedConv"]
    assert rewrite_for("FusedConv", "com.microsoft", "") == ONNXRUNTIME
