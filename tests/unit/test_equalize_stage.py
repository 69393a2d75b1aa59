"""The stage Equalize: what it costs nothing to leave out, what auto picks, what it says and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from equalization_graphs import attention, block, constant, copy, differs_by, texts
from quantization_graphs import Arrays, infer, pictures, small_cnn, sqnr_db

from optimizer.calibration.estimators import minmax
from optimizer.calibration.probe import OutputErrors
from optimizer.calibration.smoothing import GRID, choose_alpha, split
from optimizer.data.samples import Samples
from optimizer.errors import StageError
from optimizer.graph.affine import Bounds
from optimizer.graph.quantize import Quantized, quantize
from optimizer.runtime.onnx import OnnxSession
from optimizer.stage import StageContext
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.equalize import Equalize
from optimizer.stages.quantize import Quantize
from optimizer.types import Artifact
from optimizer.verify import verify


def run(
    stage: Any, model: onnx.ModelProto, samples: Samples, folder: Path, **further: Artifact
) -> tuple[Path, list[str]]:
    source, result = folder / f"{stage.name}-in", folder / f"{stage.name}-out"
    source.mkdir()
    result.mkdir()
    onnx.save(model, source / "model.onnx")
    notes: list[str] = []
    context = StageContext(folder / "log", notes.append, lambda *given: None, lambda split: samples)
    stage.run({"graph": Artifact("onnx", source, "0"), **further}, result, context)
    return result / stage.main_file, notes


def quantized_sqnr_db(model: onnx.ModelProto, reference: onnx.ModelProto, folder: Path) -> float:
    """Calibrate and quantize as a build does, and judge by other samples, one by one."""
    folder.mkdir()
    table, _ = run(Calibrate(method="minmax"), model, texts(60), folder)
    graph, _ = run(Quantize(), model, texts(3), folder, table=Artifact("calibration", table.parent, "1"))
    pairs = [
        (infer(reference, {"x": a[None]}, folder), infer(onnx.load(graph), {"x": a[None]}, folder))
        for a in texts(20, seed=9).arrays
    ]
    return sqnr_db(*(np.concatenate([p[side][0].reshape(-1) for p in pairs]) for side in (0, 1)))


def test_it_takes_part_only_where_one_of_its_options_is_given() -> None:
    assert not Equalize.wanted({})
    assert not Equalize.wanted({"method": "minmax", "cross_layer": False, "smooth_quant": None})
    assert Equalize.wanted({"cross_layer": True})
    assert Equalize.wanted({"smooth_quant": 0.0})
    assert Equalize.wanted({"smooth_quant": "auto"})


def test_planted_outliers_are_smoothed_by_several_db(tmp_path: Path) -> None:
    model = block(outlier=60.0)
    path, notes = run(Equalize(smooth_quant="auto", method="minmax"), copy(model), texts(60), tmp_path)
    plain = quantized_sqnr_db(copy(model), model, tmp_path / "plain")
    smoothed = quantized_sqnr_db(onnx.load(path), model, tmp_path / "smoothed")
    assert smoothed > plain + 6
    assert "smooth_quant auto took alpha" in notes[0]
    assert "(30 samples calibrated, 30 others judged, minmax, tensorrt dialect)" in notes[0]
    assert notes[1].endswith("0 activations scaled in the layers before them, 2 by a Mul each")


def plain_db(stage: Equalize, model: onnx.ModelProto, samples: Samples, folder: Path) -> tuple[str, str]:
    """Return what the plain graph gave in int8, and the dialect in which that was measured."""
    folder.mkdir()
    note = next(n for n in run(stage, copy(model), samples, folder)[1] if "smooth_quant auto took" in n)
    return note.partition("was plain ")[2].partition(",")[0], note.rpartition(", ")[2]


def test_auto_judges_in_the_dialect_of_the_target_and_says_so(tmp_path: Path) -> None:
    model = block(outlier=60.0)
    tensorrt, cpu = (
        plain_db(Equalize(smooth_quant="auto", method="minmax", dialect=dialect), model, texts(30), tmp_path / dialect)
        for dialect in ("tensorrt", "cpu")
    )
    assert (tensorrt[1], cpu[1]) == ("tensorrt dialect)", "cpu dialect)")
    assert tensorrt[0] != cpu[0]  # another graph


def test_auto_judges_with_attentions_products_in_int8_where_the_variant_has_them(tmp_path: Path) -> None:
    samples = Arrays(list(np.random.default_rng(2).normal(size=(30, 4, 16)).astype(np.float32)), name="x")
    without, beside = (
        plain_db(Equalize(smooth_quant="auto", attention=wanted), attention(), samples, tmp_path / str(wanted))[0]
        for wanted in (False, True)
    )
    assert float(beside) < float(without)


def test_auto_does_no_harm_where_there_are_no_outliers(tmp_path: Path) -> None:
    model = block(outlier=1.0)
    path, _ = run(Equalize(smooth_quant="auto", method="minmax"), copy(model), texts(60), tmp_path)
    plain = quantized_sqnr_db(copy(model), model, tmp_path / "plain")
    smoothed = quantized_sqnr_db(onnx.load(path), model, tmp_path / "smoothed")
    assert smoothed > plain - 0.5
    worst, _ = run(Equalize(smooth_quant=0.0), copy(model), texts(60), _new(tmp_path))
    assert quantized_sqnr_db(onnx.load(worst), model, tmp_path / "zero") < plain - 1  # a wrong alpha would have shown


def _new(folder: Path) -> Path:
    made = folder / "fixed"
    made.mkdir()
    return made


def test_the_tolerance_lets_rounding_pass_and_one_wrong_divisor_not(tmp_path: Path) -> None:
    model = block(outlier=60.0)
    path, _ = run(Equalize(smooth_quant=0.7), copy(model), texts(20), tmp_path)
    before = tmp_path / "before.onnx"
    onnx.save(model, before)
    feeds = {n: {"x": np.stack([a[:3] for a in texts(n, seed=5).arrays])} for n in (1, 4)}
    assert Equalize.tolerance is not None
    with OnnxSession(before, optimize=False) as parent:
        with OnnxSession(path, optimize=False) as child:
            verify(parent, child, feeds, Equalize.tolerance, what="equalize")
        broken = onnx.load(path)
        tensor = next(t for t in broken.graph.initializer if t.name == "w2")
        value = constant(broken, "w2")
        value[5] *= 1.01
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, "w2"))
        onnx.save(broken, tmp_path / "broken.onnx")
        with (
            OnnxSession(tmp_path / "broken.onnx", optimize=False) as child,
            pytest.raises(StageError, match="output 'y'"),
        ):
            verify(parent, child, feeds, Equalize.tolerance, what="equalize")


def test_cross_layer_is_done_first_and_both_are_noted(tmp_path: Path) -> None:
    model = small_cnn()
    samples = Arrays(pictures(12))
    path, notes = run(Equalize(cross_layer=True, smooth_quant=0.5), copy(model), samples, tmp_path)
    assert notes[0].startswith("cross-layer: 1 pairs equalized in 2 rounds")
    assert notes[1] == "smooth_quant 0.5: 1 activations scaled in the layers before them, 1 by a Mul each"
    assert differs_by(model, onnx.load(path), {"image": np.stack(pictures(3, seed=8))}, tmp_path) < 1e-5


def test_auto_judges_by_samples_that_did_not_calibrate() -> None:
    samples = texts(300)
    calibrating, judging = split(samples)
    assert (len(calibrating), len(judging)) == (128, 128)
    assert not {id(s.inputs["x"]) for s in calibrating} & {id(s.inputs["x"]) for s in judging}


def int8(model: onnx.ModelProto, ranges: Mapping[str, Bounds]) -> Quantized:
    return quantize(model, ranges, "tensorrt")


def test_auto_tries_the_plain_graph_and_both_neighbours_of_the_best_alpha() -> None:
    choice = choose_alpha(block(outlier=60.0), texts(30), minmax, int8, lambda done, total: None)
    assert None in choice.trials
    tried = {a: value for a, value in choice.trials.items() if a is not None}
    assert set(tried) >= set(GRID)
    best = max(GRID, key=lambda a: tried[a])
    assert {round(a, 2) for a in tried} - set(GRID) == {
        a for a in (round(best - 0.05, 2), round(best + 0.05, 2)) if a <= 1
    }
    assert choice.alpha is not None
    assert choice.trials[choice.alpha] > choice.trials[None] + 6
    assert choice.gain.low > 0


def test_too_few_samples_for_auto_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"auto needs at least 12 samples.*there are 11\n  Ask for more samples"):
        run(Equalize(smooth_quant="auto"), block(outlier=1.0), texts(11), tmp_path)


def test_a_graph_with_nothing_to_equalize_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cross_layer: no two layers with a positively homogeneous path"):
        run(Equalize(cross_layer=True), block(outlier=1.0), texts(3), tmp_path)
    relu = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) { y = Relu (x) }'
    )
    with pytest.raises(StageError, match="smooth_quant: the graph has no Gemm or MatMul with a constant weight"):
        run(Equalize(smooth_quant=0.5), relu, texts(3), _new(tmp_path))


def test_outputs_that_are_integers_cannot_be_judged() -> None:
    with pytest.raises(StageError, match="the model has none"):
        OutputErrors().shares()
