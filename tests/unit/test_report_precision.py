"""Precision by layer and calibration, as a page and as Markdown show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optimizer.graph.layers import AT_LEAST
from optimizer.report.html import render_html
from optimizer.report.markdown import render_markdown
from optimizer.report.precision import calibrations, layer_tables
from optimizer.report.read import read_report, to_json
from optimizer.results import Report

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"


def layer(number: int, **changes: Any) -> dict[str, Any]:
    row = {"node": f"node_{number}", "module": f"layer.{number}", "operator": "Conv", "macs": 1000 - number}
    return row | {"requested": "int8", "delivered": "int8", "reason": ""} | changes


def calibration(**changes: Any) -> dict[str, Any]:
    worst = {"tensor": "relu<1>", "module": "layer.1", "method": "mse", "clipped": 0.02, "sqnr_db": 12.34}
    worst |= {"convergence": None, "outside": 0.0, "complaints": ["2.0% clipped"]}
    head = {"method": "auto", "samples": 256, "tensors": 9, "picked": {"mse": 8, "minmax": 1}}
    return head | {"findings": ["relu<1> is poor"], "drift": ["all is covered"], "worst": [worst]} | changes


def report(layers: list[dict[str, Any]] | None = None, count: int = 0, **calibrated: dict[str, Any]) -> Report:
    document = json.loads(DEMO.read_text())
    document["calibration"] = calibrated
    chosen = next(c for c in document["candidates"] if c["name"] == "int8@onnxruntime")
    chosen |= {"layers": layers or [], "layer_count": count or len(layers or [])}
    if layers:  # what was counted in all agrees with the layers
        work = sum(row["macs"] for row in layers)
        named = {row["delivered"] for row in layers}
        shares = {name: sum(row["macs"] for row in layers if row["delivered"] == name) / work for name in named}
        chosen["precision"]["delivered"] = shares
    return Report.model_validate_json(json.dumps(document))


def test_a_report_without_receipts_and_tables_has_neither_section() -> None:
    found = read_report(DEMO)
    assert (layer_tables(found, 9), calibrations(found)) == ([], [])
    for text in (render_html(found), render_markdown(found)):
        assert "Precision by layer" not in text
        assert "Calibration" not in text


def test_the_title_of_a_layer_table_says_what_is_not_as_asked() -> None:
    kept = layer(2, requested="fp32", delivered="fp32", reason="keep: names it")
    lost = layer(3, delivered="fp32", reason="no kernel")
    titles = [layer_tables(report(rows), 9)[0].title for rows in ([layer(1)], [layer(1), kept], [layer(1), kept, lost])]
    assert titles == [
        "int8@onnxruntime: 1 layer, all int8",
        "int8@onnxruntime: 2 layers, 1 kept in fp32",
        "int8@onnxruntime: 3 layers, 1 not as asked and 1 kept in fp32",
    ]


def test_layers_carry_module_work_and_reason_and_a_blank_column_is_left_out() -> None:
    plain = layer_tables(report([layer(1, macs=750), layer(2, macs=250)]), 9)[0]
    assert [column.title for column in plain.columns] == ["Layer", "Module", "Operator", "Work", "Asked", "Executed"]
    assert plain.groups[0] == ("node_1", (("layer.1", "Conv", "75.0 %", "int8", "int8"),))
    told = layer_tables(report([layer(1, module="", delivered="fp32", reason="no kernel")]), 9)[0]
    assert told.groups[0][1][0] == ("\u2013", "Conv", "100 %", "int8", "fp32", "no kernel")


def test_the_work_of_a_layer_that_cannot_be_counted_reads_as_a_bound() -> None:
    rows = [layer(1, macs=999), layer(2, macs=1, reason=f"{AT_LEAST}: the shape of 's' cannot be inferred")]
    table = layer_tables(report(rows), 9)[0]
    assert [cells[0][2] for _, cells in table.groups] == ["99.9 %", "at least 0.1 %"]
    assert table.groups[1][1][0][-1].startswith("at least this much work")


def test_what_is_left_out_of_a_long_table_is_said() -> None:
    table = layer_tables(report([layer(i) for i in range(200)], count=500), 20)[0]
    assert len(table.groups) == 20
    assert "of the 200 in report.json. The 20 largest of 500 are shown." in table.note


def test_calibration_says_what_was_picked_then_findings_then_drift() -> None:
    (found,) = calibrations(report(int8=calibration()))
    assert found.about == "256 samples, 9 tensors, method auto, picked by the outputs: mse 8, minmax 1."
    assert found.said == ("relu<1> is poor.", "all is covered.")
    assert found.table.title == "The 1 worst of 9 tensors"
    assert found.table.groups == (
        ("relu<1>", (("layer.1", "mse", "12.3 dB", "2.0 %", "\u2013", "0 %", "2.0% clipped"),)),
    )
    drifted = calibrations(report(int8=calibration(findings=[], spared=["a", "b"])))[0]
    assert drifted.said == ("all is covered.", "Measured to serve the outputs best, these layers stay in float: a, b.")
    well = calibrations(report(int8=calibration(findings=[], worst=[], method="mse", picked={"mse": 9})))[0]
    assert not well.table
    assert well.about == "256 samples, 9 tensors, method mse."
    assert well.said == ("The doctor finds nothing to complain about.", "all is covered.")


def test_page_and_markdown_show_both_collapsed_and_escaped() -> None:
    found = report([layer(1)], int8=calibration())
    page, text = render_html(found), render_markdown(found)
    assert "<details><summary>int8<wbr>@onnxruntime: 1 layer, all int8</summary>" in page
    assert "<details open><summary>The 1 worst of 9 tensors</summary>" in page
    assert "relu&lt;1&gt; is poor." in page
    assert "relu<1>" not in page
    assert "<summary>int8@onnxruntime: 1 layer, all int8</summary>" in text
    assert text.index("## Calibration") < text.index("- relu&lt;1&gt; is poor.") < text.index("The 1 worst of 9")
    healthy = calibration()["worst"][0] | {"complaints": []}
    well = render_html(report(int8=calibration(findings=[], worst=[healthy])))
    assert "<details><summary>The 1 worst of 9 tensors</summary>" in well


def test_a_page_of_many_candidates_with_long_tables_stays_below_a_megabyte() -> None:
    document = json.loads(to_json(report()))
    rows = [
        layer(i, node="n" * 60, module="encoder.layer.11.attention.self.query", reason="r" * 60) for i in range(200)
    ]
    first = document["candidates"][1] | {"layers": rows, "layer_count": 900}
    document["candidates"] += [first | {"name": f"v{i}@onnxruntime"} for i in range(12)]
    assert len(render_html(Report.model_validate_json(json.dumps(document))).encode()) < 1_000_000


def test_notes_of_stages_stand_below_their_table_in_markdown() -> None:
    document = json.loads(DEMO.read_text())
    document["stages"][0]["notes"] = ["first | note", "second"]
    name = document["stages"][0]["id"]
    lines = render_markdown(Report.model_validate_json(json.dumps(document))).splitlines()
    at = lines.index(f"- {name}: first \\| note")
    assert lines[at + 1] == f"- {name}: second"
    assert max(len(line) for line in lines if line.startswith(f"| {name} ")) < 140


def test_the_title_agrees_with_the_share_that_was_delivered() -> None:
    rows = [layer(1, macs=944), layer(2, macs=56)]
    document = json.loads(report(rows).model_dump_json())
    chosen = next(c for c in document["candidates"] if c["name"] == "int8@onnxruntime")
    chosen["precision"] |= {"delivered": {"int8": 0.944, "fp32": 0.056}, "source": "the optimised graph"}
    table = layer_tables(Report.model_validate_json(json.dumps(document)), 9)[0]
    assert table.title == "int8@onnxruntime: 2 layers asked for int8, 94.4 % of the work executed in int8"
    (below,) = table.below
    assert below.startswith("Executed, layer by layer, is what the graph says; counted in all, the runtime executes ")
    assert below.endswith(" int8 94.4 %, fp32 5.6 % (the optimised graph).")
    chosen["layers"][1]["delivered"] = "fp32"
    told = layer_tables(Report.model_validate_json(json.dumps(document)), 9)[0]
    assert (told.title, told.below) == ("int8@onnxruntime: 2 layers, 1 not as asked", ())


def test_a_title_of_a_part_of_the_layers_says_of_how_many() -> None:
    assert layer_tables(report([layer(1)], count=300), 9)[0].title == "int8@onnxruntime: 1 of 300 layers, all int8"


def test_a_reason_that_all_layers_share_is_said_once() -> None:
    rows = [layer(i, delivered="fp32", reason="no kernel") for i in range(3)]
    table = layer_tables(report(rows), 9)[0]
    assert table.columns[-1].title == "Executed"
    assert table.below == ("Why, of all 3: no kernel.",)
    rows[0]["reason"] = "kept"
    assert layer_tables(report(rows), 9)[0].columns[-1].title == "Why"
