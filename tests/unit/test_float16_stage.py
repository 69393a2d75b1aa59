"""The float16 stage: its notes, its budget, its parameters."""

from __future__ import annotations

from pathlib import Path

import onnx
from float16_graphs import cnn, normal, sqnr_db

from optimizer.stage import StageContext
from optimizer.stages.float16 import Float16
from optimizer.types import Artifact


def stage_run(folder: Path, source: onnx.ModelProto, stage: Float16) -> tuple[Artifact, Artifact, list[str]]:
    notes: list[str] = []
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    onnx.save(source, folder / "in" / "model.onnx")

    def no_samples(split: str) -> object:
        raise AssertionError(f"the stage read the {split} samples")

    context = StageContext(folder / "log", notes.append, lambda *_: None, no_samples)  # type: ignore[arg-type]
    parent = Artifact("onnx", folder / "in", "0" * 64)
    stage.run({"graph": parent}, folder / "out", context)
    return parent, Artifact("onnx", folder / "out", "1" * 64), notes


def test_the_stage_notes_what_stayed_float32_and_why(tmp_path: Path) -> None:
    *_, notes = stage_run(tmp_path, cnn(), Float16(keep=("Gemm",)))
    assert notes == ["4 of 5 floating-point nodes are float16, 2 casts", "float32: 1 x listed in keep (fc)"]


def tolerance_holds(folder: Path, source: onnx.ModelProto) -> bool:
    stage = Float16()
    parent, output, _ = stage_run(folder, source, stage)
    assert stage.tolerance is not None
    assert stage.tolerance.min_sqnr_db is not None
    session = stage.open_output(output)
    assert not isinstance(session, str)
    x = normal(9, 3, 8, 8)
    with session, stage.open_parent({"graph": parent}) as before:
        return sqnr_db(before.infer({"x": x})["y"], session.infer({"x": x})["y"]) >= stage.tolerance.min_sqnr_db


def test_the_stage_keeps_its_budget(tmp_path: Path) -> None:
    assert tolerance_holds(tmp_path, cnn())


def test_a_graph_whose_activations_overflow_breaks_the_budget(tmp_path: Path) -> None:
    assert not tolerance_holds(tmp_path, cnn(scale=300.0))


def test_keep_is_read_from_a_list_as_a_recipe_writes_it() -> None:
    assert Float16.model_validate({"keep": ["Gemm"]}).keep == ("Gemm",)
