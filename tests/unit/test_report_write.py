"""A run's folder: the traces that its reports name, and logs of its own build alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli.report import command
from optimizer.errors import UsageError
from optimizer.pipeline.run import begin_logs, open_out
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
    assert [path.name for path in begin_logs(tmp_path).iterdir()] == [".optimizer"]
    assert begin_logs(tmp_path / "new").is_dir()


def test_only_logs_of_ours_are_replaced(tmp_path: Path) -> None:
    """A build that failed leaves its logs alone in the folder; what merely has their name is somebody else's."""
    begin_logs(tmp_path / "failed")
    assert open_out(tmp_path / "failed") == tmp_path / "failed"
    mine = tmp_path / "mine" / "logs" / "training.log"
    mine.parent.mkdir(parents=True)
    mine.write_text("epoch 1")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        open_out(tmp_path / "mine")
    assert mine.is_file()


def test_a_link_in_their_place_is_removed_and_not_what_it_names(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").symlink_to(elsewhere)
    begin_logs(tmp_path / "run")
    assert (elsewhere / "kept").is_file()


def test_logs_that_cannot_be_removed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("optimizer.pipeline.run.shutil.rmtree", refuse)
    with pytest.raises(UsageError, match="logs: cannot be made anew: Permission denied"):
        begin_logs(tmp_path)
