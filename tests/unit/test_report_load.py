"""What several candidates have in common is said once, below the table; what is one's own stays in its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optimizer.report.html import render_html
from optimizer.report.load import concurrency_table, memory_table, proof_table, scenario_table
from optimizer.report.markdown import render_markdown
from optimizer.report.tables import said_once
from optimizer.results import Report

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"
NAMES = ("fp32@onnxruntime", "int8@onnxruntime")
SHORT = ["shortened: at least 2 s instead of 600 s", "not submitted to and not verified by MLCommons"]
NO_ENERGY = {"mj_per_item": None, "reason": "no RAPL here", "idle_w": None, "source": None}
ENERGY = {"mj_per_item": 2.5, "reason": None, "idle_w": 1.0, "source": "RAPL"}


def report(**parts: list[Any]) -> Report:
    """The demo; of both candidates in `NAMES` the parts that were measured besides."""
    document = json.loads(DEMO.read_text())
    for i, name in enumerate(NAMES):
        candidate = next(c for c in document["candidates"] if c["name"] == name)
        candidate |= {part: values[i] for part, values in parts.items()}
    return Report.model_validate_json(json.dumps(document))


def scenario(deviations: list[str]) -> dict[str, Any]:
    found = {"valid": True, "reasons": [], "metrics": {"p90 ms": 1.5}, "deviations": deviations}
    return found | {"settings": {"scenario": "single_stream"}}


def memory() -> dict[str, Any]:
    sizes = {"own_bytes": 1e6, "peak_rss_bytes": 2e6, "baseline_rss_bytes": 1e6, "device_bytes": None}
    return {"batch": 1, **sizes}


def test_why_it_is_no_mlperf_result_is_said_once() -> None:
    table = scenario_table(report(scenario=[scenario(SHORT), scenario(SHORT)]))
    assert table.below == (f"No MLPerf result: {'; '.join(SHORT)}.",)
    assert table.groups[0] == (NAMES[0], (("single_stream", "VALID", "p90 ms 1.50"),))
    apart = scenario_table(report(scenario=[scenario(SHORT), scenario(SHORT[1:])]))
    assert [said.partition(":")[0] for said in apart.below] == list(NAMES)


def test_energy_that_nobody_could_read_takes_no_column() -> None:
    table = memory_table(report(memory=[memory(), memory()], energy=[NO_ENERGY, NO_ENERGY]))
    assert "Energy per item" not in [column.title for column in table.columns]
    assert table.below == ("Energy was not measured: no RAPL here.",)
    mixed = memory_table(report(memory=[memory(), memory()], energy=[NO_ENERGY, ENERGY]))
    assert [rows[0][-1] for _, rows in mixed.groups] == ["\u2013", "2.50 mJ by RAPL; 1.00 W idle"]
    assert mixed.below == (f"{NAMES[0]}: Energy was not measured: no RAPL here.",)


def test_a_proof_that_several_share_stands_below_with_their_names() -> None:
    proofs = [["against its graph: equal", "samples alone give the same"], ["samples alone give the same"]]
    table = proof_table(report(proof=proofs))
    assert table.groups == ((NAMES[0], (("against its graph: equal",),)),)
    assert table.below == ("samples alone give the same",)
    alike = report(proof=[["unproven: no GPU"], ["unproven: no GPU"]])
    assert not proof_table(alike).groups
    for text in (render_html(alike), render_markdown(alike)):
        assert text.count("unproven: no GPU") == 1


def test_what_disturbed_runners_at_once_is_said() -> None:
    load = {"workers": 2, "threads": 1, "batch": 1, "items_per_second": 10.0, "passes_items_per_second": [9.0, 11.0]}
    load |= {"p50_ms": 1.0, "p99_ms": 2.0}
    noisy = load | {"disturbed": ["waited for a processor in 3 of 4 passes"]}
    table = concurrency_table(report(concurrency=[[noisy], [load]]))
    assert table.below == (f"{NAMES[0]}: 2 at once waited for a processor in 3 of 4 passes.",)
    assert len(table.groups) == 2


def test_nothing_is_lost_where_nothing_is_shared() -> None:
    assert said_once({"a": ["one"], "b": ["two"], "c": []}) == ("a: one", "b: two")
    assert said_once({"a": ["one"]}) == ("one",)
