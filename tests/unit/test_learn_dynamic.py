"""Learning through a transformer of any length, whose positions and mask are computed from ids and lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from quantization_graphs import HEADER, infer

from optimizer.calibration.estimators import minmax
from optimizer.calibration.histogram import RunningHistogram
from optimizer.calibration.learn import Learning, Refined, refine
from optimizer.data.samples import Sample
from optimizer.errors import StageError
from optimizer.graph import differentiable
from optimizer.graph.quantize import activations, quantize
from optimizer.runtime.onnx import OnnxSession

WORDS, WIDTH, LONGEST = 40, 32, 16
LENGTHS = (6, 9, 12)

# As torch.export writes it: arange positions, a mask from lengths that is also causal, rows without any key made
# zero, and the mean over what is valid.
TRANSFORMER = """g (int64[batch, n] ids, int64[batch] lengths) => (float[batch, 5] y) {
  shape = Shape <start = 1, end = 2> (ids)
  length = Squeeze (shape, first)
  positions = Range (zero, length, one)
  tokens = Gather (words, ids)
  places = Gather (table, positions)
  x = Add (tokens, places)
  row = Unsqueeze (positions, first)
  column = Unsqueeze (lengths, second)
  valid = Less (row, column)
  keys = Unsqueeze (valid, second)
  square = Concat <axis = 0> (shape, shape)
  all = Expand (yes, square)
  causal = Trilu <upper = 0> (all, zero)
  seen = And (keys, causal)
  bias = Where (seen, open, shut)
  n1 = LayerNormalization (x, scale1, shift1)
  q = MatMul (n1, wq)
  k = MatMul (n1, wk)
  v = MatMul (n1, wv)
  kt = Transpose <perm = [0, 2, 1]> (k)
  scores = MatMul (q, kt)
  small = Mul (scores, root)
  masked = Add (small, bias)
  shares = Softmax (masked)
  nothing = IsNaN (shares)
  kept = Where (nothing, open, shares)
  context = MatMul (kept, v)
  o = MatMul (context, wo)
  ob = Add (o, bo)
  x1 = Add (x, ob)
  n2 = LayerNormalization (x1, scale2, shift2)
  h = MatMul (n2, w1)
  hb = Add (h, b1)
  g = Gelu (hb)
  f = MatMul (g, w2)
  fb = Add (f, b2)
  x2 = Add (x1, fb)
  weights = Cast <to = 1> (valid)
  wide = Unsqueeze (weights, last)
  only = Mul (x2, wide)
  total = ReduceSum <keepdims = 0> (only, second)
  many = ReduceSum (weights, second)
  least = Max (many, at_least)
  mean = Div (total, least)
  y = Gemm (mean, wy, by)
}"""
SHAPES = {
    "words": (WORDS, WIDTH), "table": (LONGEST, WIDTH), "shift1": (WIDTH,), "shift2": (WIDTH,),
    **dict.fromkeys(("wq", "wk", "wv", "wo"), (WIDTH, WIDTH)), "bo": (WIDTH,),
    "w1": (WIDTH, 2 * WIDTH), "b1": (2 * WIDTH,), "w2": (2 * WIDTH, WIDTH), "b2": (WIDTH,),
    "wy": (WIDTH, 5), "by": (5,),
}  # fmt: skip
CONSTANTS: dict[str, Any] = {
    **{"zero": np.array(0), "one": np.array(1)},
    **{"first": np.array([0]), "second": np.array([1]), "last": np.array([-1])},
    **{"open": np.array(0.0, np.float32), "shut": np.array(-np.inf, np.float32), "yes": np.array([True])},
    **{"root": np.array(WIDTH**-0.5, np.float32), "at_least": np.array(1.0, np.float32)},
    **{name: np.ones(WIDTH, np.float32) for name in ("scale1", "scale2")},
}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sums wherever the tests run."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})


def transformer(text: str = TRANSFORMER) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + text)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    rng = np.random.default_rng(4)
    random = {
        n: (rng.normal(size=s) / np.sqrt(s[0] if len(s) > 1 else 16)).astype(np.float32) for n, s in SHAPES.items()
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in (random | CONSTANTS).items())
    return model


def samples(count: int, seed: int) -> Any:
    """Sentences of three lengths, padded with word 0; every twelfth is nothing but padding."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        longest = LENGTHS[number % len(LENGTHS)]
        length = 0 if number % 12 == 0 else int(rng.integers(2, longest + 1))
        ids = np.where(np.arange(longest) < length, rng.integers(1, WORDS, longest), 0)
        found.append(Sample({"ids": ids, "lengths": np.array(length)}, None, str(number)))
    return found


def feeds(data: Any) -> list[dict[str, Any]]:
    """All samples of one length together."""
    return [
        {name: np.stack([s.inputs[name] for s in data if s.inputs["ids"].shape == (n,)]) for name in ("ids", "lengths")}
        for n in LENGTHS
    ]


def quantized(folder: Path, text: str = TRANSFORMER) -> onnx.ModelProto:
    model = transformer(text)
    names = [name for name in activations(model) if name != "y"]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    histograms = {name: RunningHistogram() for name in names}
    for feed in feeds(samples(192, 1)):
        for name, value in zip(names, infer(model, feed, folder)[1:], strict=True):
            assert histograms[name].fold(value)
    return quantize(transformer(text), {name: minmax(h) for name, h in histograms.items()}, "tensorrt").model


def outputs(model: onnx.ModelProto, data: Any, folder: Path) -> Any:
    return np.concatenate([infer(model, feed, folder)[0] for feed in feeds(data)]).astype(np.float64)


def sqnr_db(expected: Any, found: Any) -> float:
    return float(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


def learn(model: onnx.ModelProto, folder: Path, how: Learning, text: str = TRANSFORMER) -> Refined:
    onnx.save(transformer(text), folder / "reference.onnx")
    with OnnxSession(folder / "reference.onnx") as reference:
        data = samples(192, 1)
        return refine(model, transformer(text), data, reference=reference, how=how, progress=lambda *_: None)


def test_learning_brings_a_transformer_of_any_length_closer_on_sentences_it_has_not_seen(tmp_path: Path) -> None:
    model, unseen = quantized(tmp_path), samples(180, 2)
    expected = outputs(transformer(), unseen, tmp_path)
    nearest = sqnr_db(expected, outputs(model, unseen, tmp_path))
    refined = learn(model, tmp_path, Learning(12, True))
    learned = sqnr_db(expected, outputs(model, unseen, tmp_path))
    assert refined.kept
    assert learned > nearest + 0.5


def test_a_sentence_of_nothing_but_padding_would_spoil_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the case above: with softmax by itself, one such row makes every weight NaN, and nothing is kept."""
    plain = {**differentiable.OPERATORS, "Softmax": lambda node, inputs: inputs[0].softmax(-1)}
    monkeypatch.setattr(differentiable, "OPERATORS", plain)
    model = quantized(tmp_path)
    before = model.SerializeToString()
    assert not learn(model, tmp_path, Learning(1, False)).kept
    assert model.SerializeToString() == before


def test_bias_correction_reads_such_a_transformer(tmp_path: Path) -> None:
    model = quantized(tmp_path)
    for tensor in model.graph.initializer:
        if tensor.name in {"bo", "b1", "b2"}:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.2), tensor.name))
    refined = learn(model, tmp_path, Learning(0, True))
    assert refined.after_db > refined.before_db + 10


STEPPED = TRANSFORMER.replace("  y = Gemm (mean", "  whole = Round (mean)\n  y = Gemm (whole")


def test_a_step_between_layers_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    model = quantized(tmp_path, STEPPED)
    before = model.SerializeToString()
    with pytest.raises(StageError, match=r"no gradient comes through Round 'node_whole': constant between steps"):
        learn(model, tmp_path, Learning(1, False), STEPPED)
    assert model.SerializeToString() == before
    learn(model, tmp_path, Learning(0, True), STEPPED)  # goes forward only
