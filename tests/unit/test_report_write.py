"""A run's folder: the traces that its reports name, and logs of its own build alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli.build import forget_logs
from optimizer.cli.report import command
from optimizer.errors import UsageError
from optimizer.report.html import render_html
from optimizer.report.markdown import render_markdown
from optimizer.report.read import read_report
from optimizer.report.trace import BUILD, INFERENCE, traces_of
from optimizer.report.write import write_report
from optimizer.results import Report

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"
EVENT = {"name": "Conv", "ph": "X", "ts": 0.0, "dur": 5.0}


def written(run: Path, *, inference: bool) -> Report:
    report = read_report(DEMO)
    if inference:
        (run / "traces").mkdir()
        (run / "traces" / "fp32@torch.json").write_text(json.dumps([EVENT]))
    write_report(report, run)
    return report


def test_page_and_markdown_name_every_trace_that_lies_beside_them(tmp_path: Path) -> None:
    report = written(tmp_path, inference=True)
    assert [name for name, _ in traces_of(tmp_path)] == [BUILD, INFERENCE]
    for name in (BUILD, INFERENCE):
        assert json.loads((tmp_path / name).read_text())["traceEvents"]
        assert name in (tmp_path / "report.html").read_text(encoding="utf-8")
        assert f"[{name}]({name})" in (tmp_path / "report.md").read_text(encoding="utf-8")
    spans = json.loads((tmp_path / BUILD).read_text())["traceEvents"]
    assert {stage.id for stage in report.stages} <= {span["name"] for span in spans}


def test_no_trace_is_named_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / INFERENCE).write_text("of an earlier run")
    report = written(tmp_path, inference=False)
    assert not (tmp_path / INFERENCE).exists()
    assert INFERENCE not in (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (render_html(report), render_markdown(report)):
        assert "Perfetto" not in text


@pytest.mark.parametrize("form", ["html", "md"])
def test_a_report_rendered_again_is_the_one_in_the_run(tmp_path: Path, form: str) -> None:
    written(tmp_path, inference=True)
    for given in (tmp_path, tmp_path / "report.json"):
        again = CliRunner().invoke(command, [str(given), "--format", form], catch_exceptions=False)
        assert again.output == (tmp_path / f"report.{form}").read_text(encoding="utf-8")


def test_faults_of_an_earlier_build_are_gone_before_the_next(tmp_path: Path) -> None:
    fault = tmp_path / "logs" / "int8@onnxruntime.fault"
    fault.mkdir(parents=True)
    (fault / "reproduce.py").write_text("of the build before")
    (tmp_path / "report.json").write_text("{}")
    forget_logs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    forget_logs(tmp_path)  # a new folder has none


def test_logs_that_cannot_be_removed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("optimizer.cli.build.shutil.rmtree", refuse)
    with pytest.raises(UsageError, match="logs: cannot be removed: Permission denied"):
        forget_logs(tmp_path)
