"""`optimize report`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli.bundle import command as bundle
from optimizer.cli.compare import command as compare
from optimizer.cli.measure import command as measure
from optimizer.cli.report import command
from optimizer.errors import UsageError
from optimizer.paths import FAILED
from optimizer.pipeline.run import begin_logs
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


@pytest.mark.parametrize(
    ("failed", "what", "then"),
    [
        (True, "this run failed, and left no report", "Build it again:  optimize build RECIPE"),
        (
            False,
            "this run was interrupted, or is still under way: it has no report",
            "Build it again, and it goes on from there:  optimize build RECIPE",
        ),
    ],
)
@pytest.mark.parametrize("text", ["brk/0009", "9"])
def test_a_run_without_a_report_is_told_from_one_that_is_missing(
    text: str, failed: bool, what: str, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIMIZE_HOME", str(tmp_path))
    run = tmp_path / "runs" / "brk" / "0009"
    logs = begin_logs(run)
    (logs / "int8.calibrate.log").write_text("what a tool said")
    (logs / "export.log").touch()  # says nothing
    if failed:
        (logs / FAILED).touch()
    for each, arguments in ((command, []), (measure, []), (compare, [text]), (bundle, ["--variant", "int8"])):
        with pytest.raises(UsageError) as caught:
            CliRunner().invoke(each, [text, *arguments], catch_exceptions=False)
        assert (caught.value.where, caught.value.what) == (str(run), what)
        assert caught.value.hint == f"log: {logs / 'int8.calibrate.log'}\n{then}"
