"""What a recipe asks for besides accuracy and latency, and the other CPU runtimes, through the whole build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Build, run_optimize
from tests.e2e.tiny import edit, write_tiny

MEASURE = """measure:
  batches: [1, 4]
  seconds: 0.2
  resources: true
  scenario: single_stream
  loadgen: {seconds: 0.2, queries: 20}
  sweep: {batches: [1, 4], budget_ms: 1000, percentile: 50}
  concurrency: [1]
  trace: true"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The tiny network on onnxruntime and OpenVINO, with everything measured."""
    folder = tmp_path_factory.mktemp("loaded")
    recipe = write_tiny(folder / "recipe")
    edit(recipe, "variants: {fp32: {}, fp16: {}, int8: {}}", "variants: {fp32: {}, int8: {}}")
    edit(recipe, 'tensorrt_rtx: {compute_capabilities: ["8.6"]}', "openvino: {}")
    edit(recipe, "measure: {batches: [1, 4], seconds: 0.2}", MEASURE)
    done = run_optimize("build", recipe, home=folder / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    return Build(recipe, folder / "home", Path(done.stdout.splitlines()[-1]).parent, done.stdout, done.stderr)


def candidates(run: Path) -> dict[str, Any]:
    return {c["name"]: c for c in json.loads((run / "report.json").read_text())["candidates"]}


def test_openvino_executes_int8_and_whichever_wins_is_recommended(loaded: Build) -> None:
    found = candidates(loaded.run)
    assert found["int8@openvino"]["status"] == "measured"
    assert found["int8@openvino"]["precision"]["delivered"].get("int8", 0) > 0.9
    assert "OpenVINO" in found["int8@openvino"]["precision"]["source"]
    recommended = json.loads((loaded.run / "report.json").read_text())["recommended"]["cpu"]
    fastest = min(found.values(), key=lambda c: c["latency_ms"]["1"]["p50"])
    assert recommended == fastest["name"]


def test_every_measurement_that_was_asked_for_is_in_the_report(loaded: Build) -> None:
    for name, c in candidates(loaded.run).items():
        assert c["peak_memory_bytes"] == c["memory"]["own_bytes"], name
        assert c["memory"]["peak_rss_bytes"] > c["memory"]["baseline_rss_bytes"] > 10e6, name
        assert (c["energy_mj_per_item"] is None) == bool(c["energy"]["reason"]), name
        assert c["scenario"]["settings"]["scenario"] == "single_stream"
        assert c["scenario"]["metrics"]["p90_latency_ms"] > 0
        assert any("shortened" in said for said in c["scenario"]["deviations"])
        assert set(c["sweep"]["points"]) == {"1", "4"}
        assert [load["workers"] for load in c["concurrency"]] == [1]
        assert bool(c["proof"]) == (name != "fp32@torch")
    text = (loaded.run / "report.md").read_text()
    for title in ("Proof of shape and batch", "MLPerf LoadGen", "Batch sweep", "Concurrency", "Memory and energy"):
        assert title in text


def test_logs_and_traces_lie_in_the_run(loaded: Build) -> None:
    for name in candidates(loaded.run):
        assert "SUT name" in (loaded.run / "loadgen" / name / "mlperf_log_summary.txt").read_text()
    trace = json.loads((loaded.run / "inference.trace.json").read_text())
    named = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert named == set(candidates(loaded.run))


def test_a_second_build_measures_nothing_again(loaded: Build) -> None:
    again = run_optimize("build", loaded.recipe, home=loaded.home)
    assert again.returncode == 0
    assert "measured" not in again.stderr
    run = Path(again.stdout.splitlines()[-1]).parent
    before, after = candidates(loaded.run), candidates(run)
    assert {n: c["memory"] for n, c in after.items()} == {n: c["memory"] for n, c in before.items()}


def test_a_bundle_for_openvino_serves_its_golden_outputs(loaded: Build, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    done = run_optimize(
        "bundle", loaded.run, "--variant", "int8", "--target", "openvino", "-o", bundle, home=loaded.home
    )
    assert done.returncode == 0, done.stderr
    checked = run_optimize("check", bundle, home=loaded.home)
    assert checked.returncode == 0, checked.stdout + checked.stderr
