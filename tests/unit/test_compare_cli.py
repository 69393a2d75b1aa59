"""`optimize compare`: exit codes, what stands on the screen, and the files for CI."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from compare_runs import RIGHT, lose, paces, usual, write

from optimizer.cli import main


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return usual(tmp_path / "before")


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    return usual(tmp_path / "worse", 1, outcomes={"fp32@torch": RIGHT, "int8@onnxruntime": lose(60)})


def run(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def test_a_report_against_itself_exits_zero(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(before, before) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "pass: no regression found beyond the limits stated below"
    assert any(line.split()[:4] == ["int8@onnxruntime", "top1", "0.9000", "0.9000"] for line in shown)


def test_a_regression_exits_six_with_the_verdict_first(
    before: Path, worse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(before / "report.json", worse) == 6
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "fail: regression"
    assert shown[1].startswith("  int8@onnxruntime: top1 changed by -0.06")


def test_what_cannot_be_decided_exits_seven(before: Path, worse: Path) -> None:
    (before / "outcomes.npz").unlink()
    assert run(before, worse) == 7


def test_a_gates_file_decides(before: Path, worse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("top1: {max_drop: 0.2}\n")
    assert run(before, worse, "--gate", gate) == 0
    assert capsys.readouterr().out.startswith("pass: the gate is met\n")
    gate.write_text("top1: {max_drop: 0.01}\n")
    assert run(before, worse, "--gate", gate) == 6
    assert capsys.readouterr().out.startswith("fail: the gate is not met\n")


def test_junit_has_a_case_for_each_check(before: Path, tmp_path: Path) -> None:
    fast = {"fp32@torch": paces(1, 4.0), "int8@onnxruntime": paces(2, 1.0)}
    worse = usual(tmp_path / "w", outcomes={"fp32@torch": RIGHT, "int8@onnxruntime": lose(60)}, latency=fast)
    assert run(before, worse, "--junit", tmp_path / "junit.xml") == 6
    suite = ET.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    failed = [c for c in cases if c.find("failure") is not None]
    assert suite.get("tests") == str(len(cases))
    assert suite.get("failures") == "1"
    assert [(c.get("classname"), c.get("name")) for c in failed] == [("int8@onnxruntime", "top1")]
    assert failed[0].find("failure").get("type") == "regression"  # type: ignore[union-attr]


def test_markdown_has_the_verdict_and_a_whole_table(before: Path, worse: Path, tmp_path: Path) -> None:
    assert run(before, worse, "--markdown", tmp_path / "comment.md") == 6
    lines = (tmp_path / "comment.md").read_text().splitlines()
    assert lines[0] == "## fail: regression"
    table = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {7}


def test_a_file_that_cannot_be_written_is_an_error(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(before, before, "--junit", tmp_path / "no" / "junit.xml") == 2
    assert "junit.xml: cannot be written: No such file or directory" in capsys.readouterr().err


FAILURE = "stage 'quantize' failed on simplify.onnx ({0}): no node can be quantized\n  Give another.  log: logs/{0}.log"


def test_a_failure_is_told_once_with_all_that_fail_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("fp32@torch", "int8@onnxruntime", "int8@openvino")
    outcomes = dict.fromkeys(names, RIGHT)
    before = write(tmp_path / "b", outcomes, {n: paces(i, 1.0) for i, n in enumerate(names)})
    broken = {n: {"status": "failed", "reason": FAILURE.format(d * 8)} for n, d in zip(names[1:], "ab", strict=True)}
    after = write(tmp_path / "a", outcomes, {n: paces(i, 1.0) for i, n in enumerate(names)}, changed=broken)
    assert run(before, after, "--markdown", tmp_path / "c.md", "--junit", tmp_path / "c.xml") == 6
    shown = capsys.readouterr().out
    both = "  int8@onnxruntime, int8@openvino: it was measured and is failed: "
    said = "stage 'quantize' failed on simplify.onnx: no node can be quantized"
    assert shown.splitlines()[1:3] == [both + said, "    Give another.  log: logs/aaaaaaaa.log"]
    for text in (shown, (tmp_path / "c.md").read_text()):
        assert text.count("no node can be quantized") == 1
        assert text.count("as said above") == 2
    # A case of JUnit stands by itself, so each says why.
    assert (tmp_path / "c.xml").read_text().count('message="measured -&gt; failed: it was measured and is failed') == 2


def test_what_is_no_reason_is_said_in_its_row(before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two findings that are not good only the worse is a reason; the other one is not lost."""
    after = usual(tmp_path / "after", 1, outcomes={"fp32@torch": RIGHT, "int8@onnxruntime": lose(60)})
    (after / "latency.npz").unlink()
    assert run(before, after) == 6
    shown = capsys.readouterr().out.splitlines()
    rows = {tuple(line.split()[:2]): line for line in shown if line.startswith("int8@onnxruntime")}
    assert rows["int8@onnxruntime", "top1"].endswith("as said above")
    assert "there is no latency.npz beside the candidate report" in rows["int8@onnxruntime", "latency,"]


def test_an_unreadable_report_is_an_error(before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text("{")
    assert run(before, tmp_path / "report.json") == 2
    assert "not JSON" in capsys.readouterr().err
    assert run(before, tmp_path / "nothing") == 2
