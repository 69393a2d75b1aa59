"""A run's folder: which one a number means, and what is left of a run that ended early."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.errors import StageError, UsageError
from optimizer.paths import FAILED, LOGS, REPORT, begun, find_run, new_run
from optimizer.pipeline.run import begin_logs


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTIMIZE_HOME", str(tmp_path))
    return tmp_path


def reported(recipe: str) -> Path:
    run = new_run(recipe)
    (run / REPORT).write_text("{}")
    return run


def fail(run: Path, error: BaseException) -> None:
    with begun(run):
        raise error


def end(run: Path, error: type[BaseException]) -> None:
    """Begin a run that ends with an error in its first stage."""
    (begin_logs(run) / "export.log").write_text("a line")
    with pytest.raises(error):
        fail(run, error("it ended"))


def test_ctrl_c_leaves_no_folder_of_logs_and_numbers_do_not_climb() -> None:
    reported("cnn")
    for _ in range(3):
        run = new_run("cnn")
        assert run.name == "0002"
        end(run, KeyboardInterrupt)
        assert not run.exists()


def test_a_run_that_failed_keeps_its_logs_and_is_marked() -> None:
    """The twin: an error names the log."""
    for error in (StageError, OSError):
        run = new_run("cnn")
        end(run, error)
        assert (run / LOGS / "export.log").read_text() == "a line"
        assert (run / LOGS / FAILED).is_file()
    begin_logs(run)
    assert not (run / LOGS / FAILED).exists()  # the next build in this folder has not failed


def test_ctrl_c_leaves_what_is_more_than_logs(tmp_path: Path) -> None:
    placed = new_run("cnn")
    (placed / "artifacts").mkdir()
    own = tmp_path / "own"
    (own / LOGS).mkdir(parents=True)  # a person's
    begin_logs(placed)
    for run in (placed, own):
        with pytest.raises(KeyboardInterrupt):
            fail(run, KeyboardInterrupt())
        assert (run / LOGS).is_dir()


def test_a_run_that_ends_before_its_first_log_leaves_nothing_and_a_whole_one_all() -> None:
    run = new_run("cnn")
    with pytest.raises(UsageError):
        fail(run, UsageError("no such device"))
    assert not run.exists()
    with begun(whole := new_run("cnn")):
        begin_logs(whole)
        (whole / REPORT).write_text("{}")
    assert sorted(p.name for p in whole.iterdir()) == [LOGS, REPORT]
    assert not (whole / LOGS / FAILED).exists()
    assert find_run("cnn/1") == whole


def test_a_number_that_several_recipes_have_names_those_without_a_report_too() -> None:
    reported("cnn")
    end(new_run("tiny"), StageError)
    with pytest.raises(UsageError, match=r"several recipes have a run 1: cnn/0001, tiny/0001 \(no report\)"):
        find_run("1")
    with pytest.raises(UsageError, match="this run failed"):
        find_run("tiny/1")
    assert find_run("cnn/1").parent.name == "cnn"


def test_a_digit_that_is_no_number_names_no_run() -> None:
    other = reported("cnn").with_name("²")
    other.mkdir()
    (other / REPORT).write_text("{}")
    assert find_run("1").parent.name == "cnn"
    with pytest.raises(UsageError, match=r"no report\.json there"):
        find_run("²")


def test_a_folder_of_logs_that_is_no_run_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "mine" / LOGS).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no report\.json there"):
        find_run(str(tmp_path / "mine"))
