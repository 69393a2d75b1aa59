"""The stages float8 and int4 as the pipeline runs them: notes, receipts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from quantization_graphs import HEADER, Arrays, pictures, small_cnn, sqnr_db

from optimizer.errors import StageError
from optimizer.runtime.onnx import OnnxSession
from optimizer.stage import Stage, StageContext
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.float8 import Float8
from optimizer.stages.int4 import Int4
from optimizer.types import Artifact

# A transformer's block: attention of one head, and a perceptron of four times the width, both with a shortcut.
BLOCK = """g (float[batch, 16, 64] image) => (float[batch, 16, 64] y) {
  q = MatMul (image, w0)
  k = MatMul (image, w1)
  v = MatMul (image, w2)
  t = Transpose <perm = [0, 2, 1]> (k)
  s = MatMul (q, t)
  e = Mul (s, eighth)
  p = Softmax (e)
  c = MatMul (p, v)
  o = MatMul (c, w3)
  a = Add (o, image)
  n = LayerNormalization (a, gain)
  h = MatMul (n, w4)
  z = Add (h, b4)
  g1 = Gelu (z)
  m = MatMul (g1, w5)
  y = Add (m, a)
}"""


def block() -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + BLOCK)
    rng = np.random.default_rng(0)
    shapes = {**{f"w{i}": (64, 64) for i in range(4)}, "w4": (64, 256), "w5": (256, 64)}
    made = {name: rng.normal(size=shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    made |= {"eighth": np.asarray(0.125), "gain": np.ones(64), "b4": rng.normal(size=256) * 0.1}
    for name, value in made.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.checker.check_model(model, full_check=True)
    return model


def sentences(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(16, 64)).astype(np.float32) for _ in range(count)]


class Build:
    """Runs stages in a folder and keeps their notes."""

    def __init__(self, folder: Path, model: onnx.ModelProto, arrays: list[np.ndarray]) -> None:
        self.folder, self.notes = folder, list[str]()
        self.context = StageContext(folder / "log", self.notes.append, lambda *_: None, lambda _: Arrays(arrays))
        self.graph = self.artifact("onnx", "graph", "model.onnx")
        onnx.save(model, self.graph.file)

    def artifact(self, kind: str, name: str, main: str) -> Artifact:
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / main).touch()
        return Artifact(kind, self.folder / name, "0" * 64)  # type: ignore[arg-type]

    def float8(self, **fields: object) -> Artifact:
        table = self.artifact("calibration", "table", "table.json")
        data = Artifact("data", self.folder, "0" * 64)
        Calibrate(synthetic=True).run({"graph": self.graph, "samples": data}, table.path, self.context)
        made = self.artifact("onnx", "float8", "model.onnx")
        Float8(**fields).run({"graph": self.graph, "table": table}, made.path, self.context)  # type: ignore[arg-type]
        return made

    def int4(self, **fields: object) -> Artifact:
        made = self.artifact("onnx", "int4", "model.onnx")
        Int4(**fields).run({"graph": self.graph}, made.path, self.context)  # type: ignore[arg-type]
        return made

    def sqnr_db(self, stage: Stage, made: Artifact) -> float:
        feed = {"image": np.stack(sentences(8, seed=5))}
        with OnnxSession(self.graph.file, optimize=False) as session:
            (reference,) = session.infer(feed).values()
        found = stage.open_output(made)
        assert not isinstance(found, str)
        (values,) = found.infer(feed).values()
        found.close()
        return sqnr_db(reference, values)


@pytest.fixture
def transformer(tmp_path: Path) -> Build:
    return Build(tmp_path, block(), sentences(40))


def limit(stage: type[Stage]) -> float:
    assert stage.tolerance is not None
    return stage.tolerance.min_sqnr_db or np.inf


def test_a_block_in_fp8_keeps_25_db(transformer: Build) -> None:
    """Two roundings of 31 dB a product, 28 dB, and three branches; the shortcut around them carries none: 25 to 31."""
    made = transformer.float8(at_least=0.95)
    assert 25 < transformer.sqnr_db(Float8(), made) < 32
    assert "96.0% of the multiply-accumulates are fp8 (E4M3)" in transformer.notes


def test_attention_in_fp8_rounds_more_and_covers_everything(transformer: Build) -> None:
    made = transformer.float8(attention=True)
    assert 24 < transformer.sqnr_db(Float8(), made) < 32
    assert "100.0% of the multiply-accumulates are fp8 (E4M3)" in transformer.notes


@pytest.mark.parametrize(("size", "least"), [(32, 16), (64, 15), (128, 14)])
def test_a_block_in_int4_keeps_15_db(size: int, least: float, tmp_path: Path) -> None:
    """Weights of 20 to 21 dB, one product behind the other: 17 dB less a little, more through the shortcuts."""
    model = block()
    held = Build(tmp_path, model, [])
    made = held.int4(block=size, at_least=0.1)
    assert least < held.sqnr_db(Int4(), made) < 26


def test_a_wrong_scale_falls_below_the_tolerance_of_both_stages(transformer: Build) -> None:
    """The twin: the scales of one weight of each graph, halved and shuffled."""
    for stage, made in ((Float8(), transformer.float8()), (Int4(), transformer.int4())):
        assert transformer.sqnr_db(stage, made) > limit(type(stage)) + 8
        model = onnx.load(made.file)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name.startswith("w5_scale"):
                scales = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(3 * scales[::-1]), tensor.name))
        onnx.save(model, made.file)
        assert transformer.sqnr_db(stage, made) < limit(type(stage))


def test_int4_says_what_it_saves_and_needs_no_data(transformer: Build) -> None:
    made = transformer.int4()
    weights = 4 * 64 * 64 + 2 * 64 * 256
    stored = weights / 2 + 4 * weights / 32
    assert transformer.notes[0] == (
        f"96.0% of the multiply-accumulates read int4 weights in blocks of 32: {stored / 1e6:.2f} MB with their scales "
        f"instead of {4 * weights / 1e6:.2f} MB"
    )
    assert "the graph declares opset 21 instead of 20: none of its operators differs there" in transformer.notes
    assert made.file.stat().st_size < stored + 5000
    assert tuple(Int4.consumes) == ("graph",)


@pytest.mark.parametrize(("stage", "precision"), [("float8", "fp8"), ("int4", "int4")])
def test_the_receipt_lists_every_layer(transformer: Build, stage: str, precision: str) -> None:
    made = getattr(transformer, stage)(keep=("node_o",))
    receipt = json.loads((made.path / "receipt.json").read_text())
    rows = {row["node"]: (row["requested"], row["delivered"], row["reason"]) for row in receipt["layers"]}
    assert rows["node_h"] == (precision, precision, "")
    assert rows["node_o"] == ("fp32", "fp32", "the recipe keeps it")
    assert rows["node_s"][:2] == (precision, "fp32")
    assert "attention: true" in rows["node_s"][2] if stage == "float8" else "activations" in rows["node_s"][2]


def test_a_convolutional_network_in_int4_is_refused_with_the_share(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        Build(tmp_path, small_cnn(), []).int4()
    assert caught.value.what == (
        "int4 reaches 6.8% of the multiply-accumulates, at_least asks for 50.0%; in float stay node_c1, node_c2: "
        "int4 stores the weights of MatMul and Gemm alone"
    )
    assert (caught.value.where, caught.value.hint) == ("int4", "Accept it with at_least: 0.06")


def test_it_is_built_where_the_recipe_accepts_the_share(tmp_path: Path) -> None:
    """The twin."""
    held = Build(tmp_path, small_cnn(), [])
    held.int4(at_least=0.06)
    assert held.notes[0].startswith("6.8% of the multiply-accumulates read int4 weights")


def test_too_little_fp8_is_refused_with_what_is_kept(tmp_path: Path) -> None:
    held = Build(tmp_path, small_cnn(), pictures(40))
    with pytest.raises(StageError) as caught:
        held.float8(keep=("Conv",))
    assert "fp8 reaches 6.8% of the multiply-accumulates, at_least asks for 50.0%" in caught.value.what
    assert caught.value.hint == "Shorten keep:, or accept it with at_least: 0.06"
