"""What the recipe keeps reads float32 wherever there is a float32 tensor, although another layer reads it in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantization_graphs import build, infer, ranges_of, sqnr_db

from optimizer.graph import placement
from optimizer.graph.files import copy_model
from optimizer.graph.placement import Placement
from optimizer.graph.quantizable import Dialect
from optimizer.graph.quantize import Quantized, activations, quantize

CONV = "Conv <pads = [1, 1, 1, 1]>"
# What a float32 operator makes passes a pool; two convolutions read it, and the graph returns both.
POOLED = f"""g (float[batch, 4, 8, 8] image) => (float[batch, 4, 4, 4] kept, float[batch, 4, 4, 4] other) {{
  m = Mul (image, gain)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m)
  kept = {CONV} (p, w0, b0)
  other = {CONV} (p, w1, b1)
}}"""
# As above, and a Transpose twice between the pool and the layer.
MOVED = POOLED.replace(
    f"kept = {CONV} (p, w0, b0)",
    f"t = Transpose <perm = [0, 1, 3, 2]> (p) u = Transpose <perm = [0, 1, 3, 2]> (t) kept = {CONV} (u, w0, b0)",
)
# As above, and the kept layer reads in front of the pool.
ABOVE = POOLED.replace(f"kept = {CONV} (p, w0, b0)", "kept = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (m, w0, b0)")
# Both read a tensor as it is.
PLAIN = f"""g (float[batch, 4, 8, 8] image) => (float[batch, 4, 8, 8] kept, float[batch, 4, 8, 8] other) {{
  kept = {CONV} (image, w0, b0)
  other = {CONV} (image, w1, b1)
}}"""
# Both read what a quantized convolution makes.
BEHIND = f"""g (float[batch, 4, 8, 8] image) => (float[batch, 4, 8, 8] kept, float[batch, 4, 8, 8] other) {{
  a = {CONV} (image, w2, b1)
  r = Relu (a)
  kept = {CONV} (r, w0, b0)
  other = {CONV} (r, w1, b1)
}}"""
WEIGHTS = {"w0": (4, 4, 3, 3), "b0": (4,), "w1": (4, 4, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "gain": (4, 1, 1)}
FEED = {"image": np.random.default_rng(0).normal(size=(5, 4, 8, 8)).astype(np.float32)}
EXACT_DB = 120.0  # onnxruntime may sum a float32 convolution in another order
EIGHT_BITS_DB = 60.0


def made(text: str, dialect: Dialect, folder: Path, keep: tuple[str, ...] = ("node_kept",)) -> Quantized:
    model = build(text, WEIGHTS)
    return quantize(copy_model(model), ranges_of(copy_model(model), FEED, folder), dialect, keep)


def optimised(model: onnx.ModelProto) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, FEED))


def qualities(text: str, quantized: Quantized, folder: Path) -> tuple[float, float]:
    """Return the SQNR of the kept layer and of the other, the worse of as written and as onnxruntime executes it."""
    reference = infer(build(text, WEIGHTS), FEED, folder)
    found = infer(quantized.model, FEED, folder), optimised(quantized.model)
    with np.errstate(divide="ignore"):
        kept, other = (min(sqnr_db(reference[i], outputs[i]) for outputs in found) for i in (0, 1))
    return kept, other


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
@pytest.mark.parametrize("text", [POOLED, MOVED, ABOVE, PLAIN])
def test_a_kept_layer_reads_the_float_tensor_that_another_reads_in_int8(
    text: str, dialect: Dialect, tmp_path: Path
) -> None:
    quantized = made(text, dialect, tmp_path)
    kept, other = qualities(text, quantized, tmp_path)
    assert kept > EXACT_DB
    assert 30 < other < EIGHT_BITS_DB
    assert not any("reads 8-bit values" in note for note in quantized.notes)


@pytest.mark.parametrize("text", [POOLED, MOVED])
def test_a_pair_in_front_of_the_pool_would_round_what_the_kept_layer_reads(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the CPU's dialect."""
    monkeypatch.setattr(placement, "_is_wanted_in_float", lambda *_: False)
    quantized = made(text, "cpu", tmp_path)
    assert qualities(text, quantized, tmp_path)[0] < EIGHT_BITS_DB
    assert any("reads 8-bit values" in note for note in quantized.notes)


def test_a_pair_for_all_readers_would_round_what_the_kept_layer_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of TensorRT's dialect."""
    monkeypatch.setattr(Placement, "read", lambda self, tensor, *_: self.read_everywhere(tensor))
    assert qualities(PLAIN, made(PLAIN, "tensorrt", tmp_path), tmp_path)[0] < EIGHT_BITS_DB


def test_nothing_kept_leaves_the_pool_on_integers(tmp_path: Path) -> None:
    quantized = made(POOLED, "cpu", tmp_path, keep=())
    pairs = {n.input[0]: list(n.input[1:]) for n in quantized.model.graph.node if n.op_type == "QuantizeLinear"}
    assert pairs["p"] == pairs["m"]


def test_a_pool_that_is_kept_is_no_integer_pool(tmp_path: Path) -> None:
    quantized = made(POOLED, "cpu", tmp_path, keep=("MaxPool",))
    pool = next(n for n in quantized.model.graph.node if n.op_type == "MaxPool")
    assert pool.input[0] == "m"


def test_an_output_of_the_graph_is_not_rounded_for_a_layer_that_reads_it(tmp_path: Path) -> None:
    text = f"""g (float[batch, 4, 8, 8] image) => (float[batch, 4, 4, 4] p, float[batch, 4, 4, 4] other) {{
      m = Mul (image, gain)
      p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m)
      other = {CONV} (p, w1, b1)
    }}"""
    assert qualities(text, made(text, "cpu", tmp_path, keep=()), tmp_path)[0] > EXACT_DB


def test_behind_an_integer_convolution_of_the_cpu_there_is_no_float_tensor_and_the_notes_say_so(
    tmp_path: Path,
) -> None:
    """TensorRT's convolutions write float32 where a reader asks for it."""
    said = "kept in float32, node_kept reads 8-bit values all the same: onnxruntime's integer kernel writes no others"
    assert [note for note in made(BEHIND, "cpu", tmp_path).notes if note.startswith(said)]
    assert not made(BEHIND, "cpu", tmp_path, keep=("node_kept", "node_a")).notes
    assert not made(BEHIND, "tensorrt", tmp_path).notes
    kept = {dialect: qualities(BEHIND, made(BEHIND, dialect, tmp_path), tmp_path)[0] for dialect in ("tensorrt", "cpu")}
    both = qualities(BEHIND, made(BEHIND, "cpu", tmp_path, keep=("node_kept", "node_a")), tmp_path)[0]
    assert kept["cpu"] < both
    assert both > EXACT_DB


def test_an_operator_that_is_kept_and_reads_8_bits_is_named_too(tmp_path: Path) -> None:
    text = f"""g (float[batch, 4, 8, 8] image) => (float[batch, 4, 8, 8] y) {{
      a = {CONV} (image, w2, b1)
      s = Sigmoid (a)
      y = {CONV} (s, w1, b1)
    }}"""
    said = "kept in float32, node_s reads 8-bit values all the same"
    assert [note for note in made(text, "cpu", tmp_path, keep=("Sigmoid",)).notes if note.startswith(said)]
    assert not made(text, "cpu", tmp_path, keep=()).notes
    idle = "keep: Sigmoid: holds no layer that int8 would compute"
    assert made(text, "tensorrt", tmp_path, keep=("Sigmoid",)).notes == (idle,)


@pytest.mark.parametrize("text", [POOLED, MOVED, ABOVE, PLAIN, BEHIND])
def test_one_table_serves_whatever_is_kept(text: str, tmp_path: Path) -> None:
    ranges = ranges_of(build(text, WEIGHTS), FEED, tmp_path)
    assert set(ranges) == set(activations(build(text, WEIGHTS))) | {"image"}
    nodes = [n.name for n in build(text, WEIGHTS).graph.node if n.name != "node_other"]
    for chosen in range(2 ** len(nodes)):
        keep = tuple(name for i, name in enumerate(nodes) if chosen >> i & 1)
        quantize(build(text, WEIGHTS), ranges, "cpu", keep)
