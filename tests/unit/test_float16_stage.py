"""The float16 stage: its notes, its budget, its parameters."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
from float16_graphs import Split, cnn, normal, sqnr_db

from optimizer.stage import StageContext
from optimizer.stages.float16 import Float16
from optimizer.types import Artifact


def stage_run(
    folder: Path, source: onnx.ModelProto, stage: Float16, split: Split | None = None
) -> tuple[Artifact, Artifact, list[str]]:
    notes: list[str] = []
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    onnx.save(source, folder / "in" / "model.onnx")

    def samples(name: str) -> Split:
        assert split is not None, "the stage read samples that are none of its sources"
        assert name == "calibration"
        return split

    context = StageContext(folder / "log", notes.append, lambda *_: None, samples)
    parent = Artifact("onnx", folder / "in", "0" * 64)
    data = {} if split is None else {"samples": Artifact("data", folder / "in", "2" * 64)}
    stage.run({"graph": parent, **data}, folder / "out", context)
    return parent, Artifact("onnx", folder / "out", "1" * 64), notes


def test_the_stage_notes_what_stayed_float32_and_why(tmp_path: Path) -> None:
    *_, notes = stage_run(tmp_path, cnn(), Float16(keep=("Gemm",)))
    assert notes[1:] == ["4 of 5 floating-point nodes are float16, 2 casts", "float32: 1 x listed in keep (fc)"]


def tolerance_holds(folder: Path, source: onnx.ModelProto, split: Split | None = None) -> bool:
    stage = Float16()
    parent, output, _ = stage_run(folder, source, stage, split)
    assert stage.tolerance is not None
    assert stage.tolerance.min_sqnr_db is not None
    session = stage.open_output(output)
    assert not isinstance(session, str)
    x = normal(9, 3, 8, 8)
    with session, stage.open_parent({"graph": parent}) as before:
        return sqnr_db(before.infer({"x": x})["y"], session.infer({"x": x})["y"]) >= stage.tolerance.min_sqnr_db


def test_the_stage_keeps_its_budget(tmp_path: Path) -> None:
    assert tolerance_holds(tmp_path, cnn())


def test_a_graph_whose_activations_overflow_breaks_the_budget_without_data(tmp_path: Path) -> None:
    assert not tolerance_holds(tmp_path, cnn(scale=100.0))


def test_with_data_it_keeps_the_budget(tmp_path: Path) -> None:
    assert tolerance_holds(tmp_path, cnn(scale=100.0), Split(x=normal(32, 3, 8, 8, seed=5)))


def test_the_note_names_the_node_and_the_number(tmp_path: Path) -> None:
    *_, notes = stage_run(tmp_path, cnn(scale=100.0), Float16(), Split(x=normal(32, 3, 8, 8, seed=5)))
    assert notes[0] == "ranges of 6 tensors over 32 samples decide what stays float32"
    assert notes[1] == "4 of 5 floating-point nodes are float16, 2 casts"
    assert re.fullmatch(
        r"float32: 1 x its result reaches [\d,]+ on calibration data; float16 ends at 65,504 \(fc\)", notes[2]
    )


def test_the_interface_is_float16_on_request(tmp_path: Path) -> None:
    _, output, notes = stage_run(tmp_path, cnn(), Float16(io="fp16"))
    assert notes[1] == "5 of 5 floating-point nodes are float16, 0 casts"
    session = Float16().open_output(output)
    assert not isinstance(session, str)
    with session:
        assert [spec.dtype for spec in (*session.inputs, *session.outputs)] == ["float16", "float16"]


def test_keep_is_read_from_a_list_as_a_recipe_writes_it() -> None:
    assert Float16.model_validate({"keep": ["Gemm"]}).keep == ("Gemm",)


def test_a_module_is_kept_with_all_that_is_inside_it(tmp_path: Path) -> None:
    source = cnn()
    for node, module in zip(source.graph.node, ("stem.conv", "stem.relu", "pool", "", "head"), strict=True):
        node.metadata_props.add(key="optimizer.module", value=module)
    _, output, notes = stage_run(tmp_path, source, Float16(keep=("stem",)))
    assert "float32: 2 x listed in keep (conv, relu)" in notes
    (head,) = (node for node in onnx.load(output.file).graph.node if node.name == "fc")
    assert head.metadata_props[0].value == "head"  # the receipt names modules: they outlive the pass


def test_the_stage_writes_what_every_layer_computes_in_and_why_not_as_asked(tmp_path: Path) -> None:
    from optimizer.graph.layers import read_rows

    *_, output, _ = stage_run(tmp_path, cnn(), Float16(keep=("fc",)))
    rows = {row.node: row for row in read_rows(output.path) or ()}
    assert (rows["fc"].requested, rows["fc"].delivered, rows["fc"].reason) == ("fp32", "fp32", "listed in keep")
    others = [row for row in rows.values() if row.node != "fc"]
    assert others
    assert all((row.requested, row.delivered, row.reason) == ("fp16", "fp16", "") for row in others)
