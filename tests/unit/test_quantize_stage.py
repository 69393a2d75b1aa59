"""The stages calibrate and quantize as the pipeline runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from pydantic import ValidationError
from quantization_graphs import Arrays, build, infer, pictures, residual, small_cnn, sqnr_db

from optimizer.calibration.table import CalibrationTable
from optimizer.errors import StageError
from optimizer.graph import placement
from optimizer.graph.receipt import onnxruntime_receipt
from optimizer.runtime.onnx import OnnxSession
from optimizer.stage import StageContext
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.quantize import Quantize
from optimizer.types import Artifact


class Build:
    """Runs both stages in a folder and keeps their notes and progress."""

    def __init__(self, folder: Path, model: onnx.ModelProto, arrays: list[np.ndarray]) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.progress: list[tuple[str, int, int]] = []
        self.context = StageContext(
            log=folder / "log",
            note=self.notes.append,
            progress=lambda what, done, total: self.progress.append((what, done, total)),
            samples=lambda role: Arrays(arrays) if role == "calibration" else pytest.fail(role),
        )
        self.graph = self._artifact("onnx", "graph")
        onnx.save(model, self.graph.file)

    def calibrate(self, **fields: object) -> Artifact:
        table = self._artifact("calibration", "table")
        data = Artifact("data", self.folder, "0" * 64)
        fields = {"synthetic": True, **fields}  # the pictures here are random
        Calibrate(**fields).run({"graph": self.graph, "samples": data}, table.path, self.context)  # type: ignore[arg-type]
        return table

    def quantize(self, table: Artifact, **fields: object) -> Artifact:
        made = self._artifact("onnx", f"quantized-{fields.get('dialect', 'tensorrt')}")
        Quantize(**fields).run({"graph": self.graph, "table": table}, made.path, self.context)  # type: ignore[arg-type]
        return made

    def _artifact(self, kind: str, name: str) -> Artifact:
        main = {"onnx": "model.onnx", "calibration": "table.json"}[kind]
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / main).touch()
        return Artifact(kind, self.folder / name, "0" * 64)  # type: ignore[arg-type]


@pytest.fixture
def small(tmp_path: Path) -> Build:
    return Build(tmp_path, small_cnn(), pictures(40))


def test_one_table_serves_both_dialects(small: Build) -> None:
    table = small.calibrate()
    feed = {"image": np.stack(pictures(16, seed=7))}
    reference = OnnxSession(small.graph.file, optimize=False).infer(feed)["logits"]
    for dialect in ("tensorrt", "cpu", "openvino"):
        made = small.quantize(table, dialect=dialect)
        stage = Quantize(dialect=dialect)  # type: ignore[arg-type]
        assert stage.tolerance is not None
        session = stage.open_output(made)
        assert not isinstance(session, str)
        assert sqnr_db(reference, session.infer(feed)["logits"]) > (stage.tolerance.min_sqnr_db or np.inf) + 10
        assert f"100.0% of the multiply-accumulates are int8 ({dialect} dialect)" in small.notes


def test_the_table_says_how_it_was_made_and_the_progress_reaches_the_end(small: Build) -> None:
    table = CalibrationTable.read(small.calibrate(method="percentile", percentile=99.9).file)
    assert (table.method, table.percentile, table.samples) == ("percentile", 99.9, 40)
    assert set(table.tensors) == {"image", "r1", "p1", "r2", "p2", "flat", "r3"}
    assert small.progress[-1] == ("calibration samples", 40, 40)
    for row in table.tensors.values():
        assert row.min <= row.low <= row.high <= row.max


def test_the_method_changes_the_table(small: Build) -> None:
    minmax = CalibrationTable.read(small.calibrate(method="minmax").file)
    percentile = CalibrationTable.read(small.calibrate(percentile=99.0).file)
    assert minmax.method == "minmax"
    assert minmax.tensors["image"].magnitude > percentile.tensors["image"].magnitude


def test_the_same_data_gives_the_same_bytes(small: Build) -> None:
    first = small.calibrate().file.read_bytes()
    assert small.calibrate().file.read_bytes() == first
    table = small.calibrate()
    quantized = small.quantize(table).file.read_bytes()
    assert small.quantize(table).file.read_bytes() == quantized


@pytest.mark.parametrize("percentile", [50.0, 0.999, 100.1])
def test_a_percentile_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(ValidationError):
        Calibrate(percentile=percentile)


def test_calibrating_on_nan_names_the_sample(tmp_path: Path) -> None:
    arrays = pictures(8)
    arrays[3][1, 2, 2] = np.nan
    with pytest.raises(StageError, match="sample picture-3") as caught:
        Build(tmp_path, small_cnn(), arrays).calibrate()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_a_kept_layer_is_float_as_executed_and_named_in_the_notes(small: Build, dialect: str) -> None:
    made = small.quantize(small.calibrate(), keep=("node_c2",), dialect=dialect, at_least=0.4)
    assert "in float32: node_c2: the recipe keeps it" in small.notes
    if dialect == "cpu":
        assert onnxruntime_receipt(made.file).precisions["node_c2"] == "fp32"


def test_a_kept_layer_that_onnxruntime_quantizes_by_itself_is_refused(
    small: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: without its guard onnxruntime takes the layer, and the receipt sees it."""
    monkeypatch.setattr(placement, "_guard", lambda *_: None)
    with pytest.raises(StageError, match="onnxruntime runs node_c2 in int8 by itself"):
        small.quantize(small.calibrate(), keep=("node_c2",), dialect="cpu")


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_the_receipt_stands_beside_the_graph_layer_by_layer(small: Build, dialect: str) -> None:
    made = small.quantize(small.calibrate(), keep=("node_c2",), dialect=dialect, at_least=0.4)
    receipt = json.loads((made.path / "receipt.json").read_text())
    assert receipt["dialect"] == dialect
    assert [(row["node"], row["requested"], row["delivered"]) for row in receipt["layers"]] == [
        ("node_c1", "int8", "int8"),
        ("node_c2", "fp32", "fp32"),
        ("node_g1", "int8", "int8"),
        ("node_logits", "int8", "int8"),
    ]
    assert receipt["precision"]["int8"] == pytest.approx(1 - 18432 / (13824 + 18432 + 2048 + 320))


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_options_without_effect_are_told(small: Build, dialect: str) -> None:
    small.quantize(small.calibrate(), dialect=dialect, residuals="int8", attention=True)
    assert [note.partition(" has no effect")[0] for note in small.notes if "no effect" in note] == [
        "residuals: int8",
        "attention: true",
    ]


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_integer_sums_are_written_by_the_stage(tmp_path: Path, dialect: str) -> None:
    made = Build(tmp_path, residual(), pictures(16, 16))
    quantized = onnx.load(made.quantize(made.calibrate(), dialect=dialect, residuals="int8").file)
    added = [n for n in quantized.graph.node if n.op_type == "Add"]
    assert all(n.input[1].endswith("_dequantized") for n in added)
    assert not any("no effect" in note for note in made.notes)


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_less_int8_than_asked_for_fails_and_names_what_stayed_float(small: Build, dialect: str) -> None:
    table = small.calibrate()
    with pytest.raises(StageError) as caught:
        small.quantize(table, keep=("Conv",), dialect=dialect)
    assert "int8 reaches 6.8% of the multiply-accumulates, at_least asks for 50.0%" in caught.value.what
    assert "node_c1, node_c2: the recipe keeps it" in caught.value.what
    assert "at_least: 0.06" in (caught.value.hint or "")
    small.quantize(table, keep=("Conv",), dialect=dialect, at_least=0.06)


def test_no_int8_at_all_is_an_error_whatever_was_asked_for(tmp_path: Path) -> None:
    text = "g (float[b, 3, 8, 8] image) => (float[b, 4, 16, 16] y) { y = ConvTranspose <strides = [2, 2]> (image, w0) }"
    made = Build(tmp_path, build(text, {"w0": (3, 4, 2, 2)}), pictures(8))
    table = made.calibrate()
    made.quantize(table, dialect="tensorrt")
    with pytest.raises(StageError, match="node_y: onnxruntime has no integer ConvTranspose on the CPU"):
        made.quantize(table, dialect="cpu", at_least=0.01)


def test_the_file_shrinks_to_about_a_quarter(tmp_path: Path) -> None:
    made = Build(tmp_path, residual(), pictures(8, 16))
    before = made.graph.file.stat().st_size
    assert (
        made.quantize(made.calibrate()).file.stat().st_size < 0.5 * before
    )  # names and scales weigh in this small one


def test_a_graph_read_by_the_stage_is_left_as_it_was(small: Build) -> None:
    before = small.graph.file.read_bytes()
    small.quantize(small.calibrate())
    assert small.graph.file.read_bytes() == before


def test_the_author_of_a_recipe_does_not_set_the_dialect() -> None:
    assert Quantize.model_json_schema()["properties"]["dialect"]["derived"] is True
    assert Calibrate.model_json_schema()["properties"]["synthetic"]["derived"] is True
    assert set(Quantize.model_fields) == {"keep", "residuals", "attention", "at_least", "dialect"}


def test_keys_differ_by_parameter() -> None:
    versions = {"onnx": "1", "onnxruntime": "1", "numpy": "1"}
    sources = {"graph": "a", "table": "b"}
    keys = {
        stage.key(sources, versions)
        for stage in (
            *(Quantize(), Quantize(dialect="cpu"), Quantize(keep=("Conv",)), Quantize(at_least=0.6)),
            *(Quantize(residuals="int8"), Quantize(attention=True)),
        )
    }
    assert len(keys) == 6
    assert json.loads(json.dumps(Quantize().model_dump(mode="json")))["at_least"] == 0.5


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    made = Build(tmp_path, small_cnn(), pictures(8))
    onnx.save(small_cnn(), made.graph.file, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    quantized = onnx.load(made.quantize(made.calibrate()).file)
    feed = {"image": np.stack(pictures(8))}
    assert sqnr_db(infer(small_cnn(), feed, tmp_path)[0], infer(quantized, feed, tmp_path)[0]) > 25.0


def recurrent() -> onnx.ModelProto:
    text = """g (float[batch, 3, 8] image) => (float[batch, 3, 5] y) {
      s, last, cell = LSTM <hidden_size = 4> (image, w0, w1)
      q = Squeeze (s, one)
      y = MatMul (q, w2)
    }"""
    model = build(text, {"w0": (1, 16, 8), "w1": (1, 16, 4), "w2": (4, 5), "one": (1,)})
    model.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(np.array([1], np.int64), "one"))
    return model


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_a_recurrent_layer_counts_against_the_share(tmp_path: Path, dialect: str) -> None:
    """Of 212 multiply-accumulates per step the layer behind the LSTM has 20."""
    sequences = [np.random.default_rng(i).normal(size=(3, 8)).astype(np.float32) for i in range(8)]
    made = Build(tmp_path, recurrent(), sequences)
    table = made.calibrate()
    with pytest.raises(StageError) as caught:
        made.quantize(table, dialect=dialect)
    assert "int8 reaches 9.4% of the multiply-accumulates" in caught.value.what
    assert "node_s: recurrent layers are not quantized" in caught.value.what
    made.quantize(table, dialect=dialect, at_least=0.09)
    assert f"9.4% of the multiply-accumulates are int8 ({dialect} dialect)" in made.notes
    assert "in float32: node_s: recurrent layers are not quantized" in made.notes


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_what_cannot_be_counted_is_not_int8(tmp_path: Path, dialect: str) -> None:
    """Both layers are int8 in the graph; of the second nobody can say how many rows it gets."""
    text = """g (float[batch, 8] image) => (float[k, 8] y) {
      h = MatMul (image, w0)
      m = ReduceMax <keepdims = 0> (h, axes)
      c = Greater (m, low)
      s = Compress <axis = 0> (h, c)
      y = MatMul (s, w1)
    }"""
    model = build(text, {"w0": (8, 8), "w1": (8, 8), "axes": (1,), "low": ()})
    for tensor, value in zip(list(model.graph.initializer)[2:], (np.array([1], np.int64), np.float32(-9)), strict=True):
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value), tensor.name))
    rows = [np.random.default_rng(i).normal(size=8).astype(np.float32) for i in range(8)]
    made = Build(tmp_path, model, rows)
    table = made.calibrate()
    made.quantize(table, dialect=dialect, at_least=0.5)
    assert f"50.0% of the multiply-accumulates are int8 ({dialect} dialect)" in made.notes
    told = "the multiply-accumulates of node_y cannot be counted: the shape of '"
    assert any(note.startswith(told) for note in made.notes)
    with pytest.raises(StageError, match=r"int8 reaches 50\.0%.*node_y cannot be counted"):
        made.quantize(table, dialect=dialect, at_least=0.6)
