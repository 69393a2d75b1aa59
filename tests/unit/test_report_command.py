"""`optimize report`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli.measure import command as measure
from optimizer.cli.report import command
from optimizer.errors import UsageError
from optimizer.report.read import read_report, to_json

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "runs" / "digits-cnn" / "0007"
    folder.mkdir(parents=True)
    shutil.copy(DEMO, folder / "report.json")
    return folder


@pytest.mark.parametrize(
    ("form", "start"), [("html", "<!DOCTYPE html>"), ("md", "# Ship int8"), ("json", "{\n"), ("junit", "<?xml version")]
)
def test_each_format_goes_to_stdout(form: str, start: str, run: Path) -> None:
    result = CliRunner().invoke(command, [str(run), "--format", form], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output.startswith(start)


def test_json_is_the_report_and_nothing_else(run: Path) -> None:
    result = CliRunner().invoke(command, [str(run / "report.json"), "--format", "json"], catch_exceptions=False)
    assert result.output == to_json(read_report(run))


def test_a_runs_number_is_enough(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMIZE_HOME", str(run.parents[2]))
    assert CliRunner().invoke(command, ["7", "--format", "md"], catch_exceptions=False).output.startswith("# Ship")


def test_a_file_is_written_and_named(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    result = CliRunner().invoke(command, [str(run), "-o", str(target)], catch_exceptions=False)
    assert result.output == f"{target}\n"
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_folder_that_is_missing_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        CliRunner().invoke(command, [str(run), "-o", str(tmp_path / "no" / "page.html")], catch_exceptions=False)


def test_a_run_that_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMIZE_HOME", str(tmp_path))
    with pytest.raises(UsageError):
        CliRunner().invoke(command, [str(tmp_path / "nothing")], catch_exceptions=False)


@pytest.mark.parametrize("text", ["brk/0009", "9"])
def test_a_run_that_failed_is_told_from_one_that_is_missing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIMIZE_HOME", str(tmp_path))
    log = tmp_path / "runs" / "brk" / "0009" / "logs" / "int8.calibrate.log"
    log.parent.mkdir(parents=True)
    log.touch()
    for each in (command, measure):
        with pytest.raises(UsageError, match="this run failed or was interrupted, and left no report") as caught:
            CliRunner().invoke(each, [text], catch_exceptions=False)
        assert caught.value.where == str(log.parent.parent)
        assert f"log: {log}" in str(caught.value.hint)
