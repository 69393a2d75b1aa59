"""The cast pass: what narrows, what stays, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from float16_graphs import Arrays, cnn, model, normal, run, sqnr_db
from onnx import TensorProto, numpy_helper

from optimizer.errors import StageError
from optimizer.graph import files
from optimizer.graph.float16 import convert_to_float16
from optimizer.graph.narrow import CastReport
from optimizer.runtime.onnx import OnnxSession


def convert(
    folder: Path, source: onnx.ModelProto, keep: tuple[str, ...] = (), reasons: dict[str, str] | None = None
) -> tuple[onnx.ModelProto, CastReport]:
    """Convert, and hold every result to what is true of all: valid, minimal in casts, loadable."""
    onnx.save(source, folder / "source.onnx")
    report = convert_to_float16(folder / "source.onnx", folder / "half.onnx", keep, reasons)
    result = onnx.load(folder / "half.onnx")
    casts = [node for node in result.graph.node if node.op_type == "Cast"]
    made = {node.output[0] for node in casts}
    to = {node.output[0]: node.attribute[0].i for node in casts}
    assert not [node for node in casts if node.input[0] in made], "a Cast reads a Cast"
    assert len({(node.input[0], to[node.output[0]]) for node in casts}) == len(casts), "two Casts do the same"
    for before, after in ((source.graph.input, result.graph.input), (source.graph.output, result.graph.output)):
        assert [(v.name, v.type) for v in before] == [(v.name, v.type) for v in after]
    names = [node.name for node in result.graph.node if node.name]
    assert len(set(names)) == len(names)
    OnnxSession(folder / "half.onnx", optimize=False).close()
    return result, report


def types(result: onnx.ModelProto) -> dict[str, int]:
    found = {v.name: v.type.tensor_type.elem_type for v in (*result.graph.value_info, *result.graph.output)}
    return found | {t.name: t.data_type for t in result.graph.initializer}


def test_a_cnn_computes_in_float16_between_two_casts(tmp_path: Path) -> None:
    result, report = convert(tmp_path, cnn())
    assert [n.op_type for n in result.graph.node] == ["Cast", "Conv", "Relu", "MaxPool", "Flatten", "Gemm", "Cast"]
    assert (report.narrow_nodes, report.kept, report.casts) == (5, {}, 2)
    assert all(types(result)[name] == TensorProto.FLOAT16 for name in ("w", "b", "v", "c", "a", "r", "p", "f"))


def test_float16_weights_are_the_nearest(tmp_path: Path) -> None:
    source = cnn()
    result, _ = convert(tmp_path, source)
    for before, after in zip(source.graph.initializer, result.graph.initializer, strict=True):
        np.testing.assert_array_equal(
            numpy_helper.to_array(after), numpy_helper.to_array(before).astype(np.float16), strict=True
        )


def test_fp16_keeps_listed_ops_in_float32(tmp_path: Path) -> None:
    by_type, report = convert(tmp_path, cnn(), keep=("Gemm",))
    assert report.kept == {"fc": "listed in keep"}
    assert types(by_type)["v"] == TensorProto.FLOAT
    by_name, report = convert(tmp_path, cnn(), keep=("conv",))
    assert report.kept == {"conv": "listed in keep"}
    assert types(by_name)["w"] == TensorProto.FLOAT
    _, report = convert(tmp_path, cnn(), reasons={"fc": "reaches 70000 on real data"})
    assert report.kept == {"fc": "reaches 70000 on real data"}


def test_a_kept_name_that_matches_nothing_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        convert(tmp_path, cnn(), keep=("Conv", "Gem"))
    assert str(caught.value) == (
        "float16: keep: 'Gem' is neither an operator type, a node nor a module of the graph\n"
        "  nearest: Gemm (operator type)"
    )


def test_a_constant_beyond_the_range_keeps_its_node_float32(tmp_path: Path) -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        a = MatMul(x, w) [scale] s = Mul(a, big) d = Div(s, big) y = MatMul(d, w) }"""
    source = model(text, w=np.eye(4), big=np.float32(1e5))
    result, report = convert(tmp_path, source)
    assert report.kept["scale"] == "its constant 'big' (100000) lies beyond float16's 65504"
    assert numpy_helper.to_array(next(t for t in result.graph.initializer if t.name == "big")) == np.float32(1e5)
    x = normal(5, 4)
    assert sqnr_db(x, run(tmp_path / "half.onnx", x=x)) > 60


def test_without_that_the_constant_would_become_infinite() -> None:
    with np.errstate(over="ignore"):
        assert np.isinf(np.float32(1e5).astype(np.float16))


def test_a_mask_beyond_the_range_reaches_softmax_without_a_cast(tmp_path: Path) -> None:
    text = """g (float[n, 4] x, bool[n, 4] mask) => (float[n, 4] y) {
        a = MatMul(x, w)  [fill] m = Where(mask, low, a)  [soft] s = Softmax(m)  y = MatMul(s, w) }"""
    source = model(text, w=np.eye(4), low=np.finfo(np.float32).min)
    _, report = convert(tmp_path, source)
    assert report.kept["soft"] == "reads what 'fill' may place outside float16's range"
    # A row that is masked whole: uniform in float32, NaN if the mask had become -inf.
    found = run(tmp_path / "half.onnx", x=normal(2, 4), mask=np.array([[False] * 4, [True] * 4]))
    np.testing.assert_array_equal(found[1], np.full(4, 0.25, np.float32))


def test_an_infinite_mask_stays_float16(tmp_path: Path) -> None:
    text = """g (float[n, 4] x, bool[n, 4] mask) => (float[n, 4] y) {
        a = MatMul(x, w)  m = Where(mask, low, a)  s = Softmax(m)  y = MatMul(s, w) }"""
    _, report = convert(tmp_path, model(text, w=np.eye(4), low=np.float32(-np.inf)))
    assert report.kept == {}


NORM = """g (float[n, 128] x) => (float[n, 4] y) {
    a = MatMul(x, w)  [mean] m = ReduceMean(a, axis)  [sub] d = Sub(a, m)  [square] q = Pow(d, two)
    [variance] v = ReduceMean(q, axis)  [eps] e = Add(v, epsilon)  [root] r = Sqrt(e)  [div] z = Div(d, r)
    s = Mul(z, gamma)  y = MatMul(s, u) }"""


def norm(epsilon: float) -> onnx.ModelProto:
    return model(
        NORM,
        w=np.eye(128) * 1e-6,
        axis=np.array([-1]),
        two=np.float32(2),
        epsilon=np.float32(epsilon),
        gamma=np.ones(128, np.float32),
        u=normal(128, 4),
    )


def test_a_normalisation_written_out_stays_float32_between_two_casts(tmp_path: Path) -> None:
    result, report = convert(tmp_path, norm(1e-12))
    assert list(report.kept) == ["mean", "sub", "square", "variance", "eps", "root", "div"]
    assert report.kept["eps"] == "its constant 'epsilon' (1e-12) would become 0 in float16"
    assert [n.op_type for n in result.graph.node].count("Cast") == 4  # x, a, z, y


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5])
def test_a_small_epsilon_survives(epsilon: float, tmp_path: Path) -> None:
    """The variance here is 1e-12: in float16 it and the epsilon would be 0 and the quotient infinite."""
    convert(tmp_path, norm(epsilon))
    x = normal(3, 128)
    with OnnxSession(tmp_path / "source.onnx", optimize=False) as session:
        expected = session.infer({"x": x})["y"]
    found = run(tmp_path / "half.onnx", x=x)
    assert np.isfinite(found).all()
    assert np.float16(1e-12) == 0
    assert np.abs(expected - found).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(("side", "kept"), [(8, []), (9, ["mean"])])
def test_a_long_mean_stays_float32_and_a_short_one_does_not(side: int, kept: list[str], tmp_path: Path) -> None:
    text = f"""g (float[n, 3, {side}, {side}] x) => (float[n, 4, 1, 1] y) {{
        a = Conv(x, w)  [mean] m = GlobalAveragePool(a)  y = Conv(m, u) }}"""
    _, report = convert(tmp_path, model(text, w=normal(4, 3, 1, 1), u=normal(4, 4, 1, 1)))
    assert list(report.kept) == kept


def test_layer_normalization_stays_float32_and_softmax_does_not(tmp_path: Path) -> None:
    text = """g (float[n, 8] x) => (float[n, 8] y) {
        a = MatMul(x, w)  [norm] b = LayerNormalization(a, s, s)  c = MatMul(b, w)
        d = Softmax(c)  y = MatMul(d, w) }"""
    _, report = convert(tmp_path, model(text, w=np.eye(8), s=np.ones(8, np.float32)))
    assert list(report.kept) == ["norm"]
    assert "mean and variance are sums" in report.kept["norm"]


def test_shape_arithmetic_and_resize_scales_stay_float32(tmp_path: Path) -> None:
    text = """g (float[n, 3, h, h] x) => (float[n, 4, p, q] y) {
        a = Conv(x, w)  s = Shape<start = 2>(a)  f = Cast<to: int = 1>(s)  [times] t = Mul(f, factor)
        [whole] i = Floor(t)  z = Div(i, f)  k = Concat<axis = 0>(one, z)  r = Resize(a, , k)  y = Conv(r, u) }"""
    source = model(text, w=normal(4, 3, 1, 1), u=normal(4, 4, 1, 1), factor=np.float32(1.5), one=np.ones(2, np.float32))
    result, report = convert(tmp_path, source)
    assert report.kept["times"] == "computes with sizes, which float16 cannot hold exactly above 2048"
    assert {"times", "whole"} <= set(report.kept)
    assert types(result)["k"] == TensorProto.FLOAT
    assert types(result)["r"] == TensorProto.FLOAT16


def test_a_table_is_narrowed_and_indices_are_untouched(tmp_path: Path) -> None:
    text = """g (int64[n, 6] x) => (float[n, 6, 4] y) {
        e = Gather(table, x)  f = Cast<to: int = 1>(x)  u = Unsqueeze(f, axes)  a = Mul(e, u)  y = MatMul(a, w) }"""
    result, report = convert(tmp_path, model(text, table=normal(9, 4), axes=np.array([2]), w=np.eye(4)))
    assert report.kept == {}
    assert types(result)["table"] == TensorProto.FLOAT16
    assert types(result)["f"] == TensorProto.FLOAT16  # int64 to float16 in one Cast


def test_a_cast_from_integers_is_read_past_when_both_types_are_wanted(tmp_path: Path) -> None:
    text = """g (int64[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
        f = Cast<to: int = 1>(x)  z = Exp(f)  y = MatMul(f, w) }"""
    result, _ = convert(tmp_path, model(text, w=np.eye(4)))
    assert sorted(n.input[0] for n in result.graph.node if n.op_type == "Cast") == ["x", "x", "y_float16"]


def test_one_constant_serves_both_types_without_a_cast(tmp_path: Path) -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        a = MatMul(x, w) b = Add(a, c) e = Exp(b) d = Mul(e, c) y = MatMul(d, w) }"""
    result, _ = convert(tmp_path, model(text, w=np.eye(4), c=normal(4)))
    assert types(result)["c"] == TensorProto.FLOAT
    assert types(result)["c_float16"] == TensorProto.FLOAT16


def test_a_subgraph_stays_float32_whole_and_reads_float32(tmp_path: Path) -> None:
    text = """g (float[n, 4] x, bool c) => (float[n, 4] y) {
        a = MatMul(x, w)
        [branch] i = If(c) < then_branch = t () => (float[n, 4] p) { p = Exp(a) },
                             else_branch = e () => (float[n, 4] q) { q = Add(a, w0) } >
        y = MatMul(i, w) }"""
    result, report = convert(tmp_path, model(text, w=np.eye(4), w0=normal(4)))
    assert report.kept == {"branch": "holds a subgraph, which stays float32 whole"}
    assert types(result)["w0"] == TensorProto.FLOAT
    x = normal(2, 4)
    with OnnxSession(tmp_path / "source.onnx", optimize=False) as session:
        expected = session.infer({"x": x, "c": np.array(True)})["y"]
    assert sqnr_db(expected, run(tmp_path / "half.onnx", x=x, c=np.array(True))) > 55


def test_an_output_that_is_also_read_inside_is_cast_once(tmp_path: Path) -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { y = MatMul(x, w) a = Relu(y) z = MatMul(a, w) }"
    result, report = convert(tmp_path, model(text, w=np.eye(4)))
    assert report.casts == 3
    assert [n.input[0] for n in result.graph.node if n.op_type == "Relu"] == ["y_float16"]


def test_a_node_between_float32_nodes_is_not_worth_its_casts(tmp_path: Path) -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Exp(x) [mid] b = Abs(a) c = Log(b) y = MatMul(c, w) }"
    _, report = convert(tmp_path, model(text, w=np.eye(4)))
    assert "mid" in report.kept
    assert report.casts == 2


def test_an_operator_without_float16_in_onnx_stays_float32(tmp_path: Path) -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        a = MatMul(x, w)  [range] r = Range(zero, four, one)  b = Add(a, r)  y = MatMul(b, w) }"""
    constants: Arrays = {"zero": np.float32(0), "four": np.float32(4), "one": np.float32(1)}
    _, report = convert(tmp_path, model(text, w=np.eye(4), **constants))
    assert report.kept == {"range": "ONNX defines no float16 for it"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "g (float16[n] x) => (float16[n] y) { y = Relu(x) }",
            "the graph already holds 2 float16 tensors, the first is 'x'",
        ),
        (
            "g (float[n] x) => (float[n] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
            "the graph is already quantized (1 QuantizeLinear, 1 DequantizeLinear)",
        ),
        (
            "g (float[n] x) => (float[n] y) { y = Exp(x) }",
            "nothing became float16: 1 x leaves float16's range for ordinary arguments",
        ),
    ],
)
def test_what_cannot_become_float16_is_refused(text: str, what: str, tmp_path: Path) -> None:
    constants: Arrays = {"s": np.float32(0.1)} if "Quantize" in text else {}
    with pytest.raises(StageError) as caught:
        convert(tmp_path, model(text, **constants))
    assert caught.value.what == what
    assert caught.value.exit_code == 4


def test_what_the_parser_of_tensorrt_refuses_in_float16_stays_float32(tmp_path: Path) -> None:
    text = """g (float[3, 2, 4] x) => (float[3, 1, 2, 5] y) {{
        a = MatMul(x, m)  [lstm] y = LSTM<hidden_size = 5>(a, w, r, , {lengths}) }}"""
    weights: Arrays = {"m": np.eye(4), "w": normal(1, 20, 4), "r": normal(1, 20, 5)}
    lengths = np.array([3, 2], np.int32)
    _, report = convert(tmp_path, model(text.format(lengths="n"), n=lengths, **weights))
    assert report.kept == {"lstm": "TensorRT's ONNX parser refuses it in float16 when sequence lengths are given"}
    _, report = convert(tmp_path, model(text.format(lengths=""), **weights))
    assert report.kept == {}


def test_weights_that_one_file_cannot_hold_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(tmp_path, cnn())
    whole = run(tmp_path / "half.onnx", x=normal(2, 3, 8, 8))
    monkeypatch.setattr(files, "INLINE_LIMIT_BYTES", 1000)
    files.save_model(cnn(), tmp_path / "large.onnx")
    convert_to_float16(tmp_path / "large.onnx", tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx.data").stat().st_size > 1000
    np.testing.assert_array_equal(run(tmp_path / "half.onnx", x=normal(2, 3, 8, 8)), whole)


def test_tensorrt_parses_what_the_pass_writes(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    for source in (cnn(), norm(1e-12)):
        convert(tmp_path, source)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
        assert parser.parse_from_file(str(tmp_path / "half.onnx")), parser.get_error(0).desc()
        assert network.get_input(0).dtype == trt.float32
        assert network.get_output(0).dtype == trt.float32
