"""Children that import ahead answer as those started for a call do, and none of them outlives the block."""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optimizer.errors import StageError
from optimizer.isolated import OutOfTimeError, run_isolated
from optimizer.isolated import standby as standby_module
from optimizer.isolated.standby import AHEAD, search_path, standing_by

HERE = __name__


# What the children run.
def about():
    sys.stdout.write("said in the call\n")
    os.write(2, b"straight to the descriptor\n")
    return {
        "pid": os.getpid(),
        "folder": str(Path.cwd()),
        "mark": os.environ.get("STANDBY_MARK"),
        "input": sys.stdin.read(),
    }


def segfault():
    os.write(2, b"optimizing node conv_7\n")
    ctypes.string_at(0)


def limit():
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def sleep():
    time.sleep(60)


def refuse():
    raise StageError("axis 'batch' is gone")


@pytest.fixture(autouse=True)
def two_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


@pytest.fixture
def started(monkeypatch):
    """Process ids of all children that are started to wait."""
    pids = []

    class Counted(standby_module.Child):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            pids.append(self.process.pid)

    monkeypatch.setattr(standby_module, "Child", Counted)
    return pids


def run(name, tmp_path, module=HERE, **limits):
    return run_isolated(f"{module}:{name}", {}, log=tmp_path / "x.log", what="stage 'simplify'", **limits)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_a_call_is_answered_by_the_child_that_waits_for_it(tmp_path, started):
    with standing_by([(HERE,)]):
        assert len(started) == 1
        result = run("about", tmp_path)
    assert result.value["pid"] == started[0]
    assert result.peak_rss_bytes > 1_000_000
    assert result.value["input"] == ""
    log = (tmp_path / "x.log").read_text()
    assert "said in the call" in log
    assert "straight to the descriptor" in log


def test_without_a_child_that_waits_the_call_starts_one(tmp_path, started):
    with standing_by([("another.module",)]):
        assert run("about", tmp_path).value["pid"] not in started
    assert run("about", tmp_path).value["pid"] not in started


def test_each_child_answers_one_call_and_few_wait_at_a_time(tmp_path, started):
    with standing_by([(HERE,)] * 3):
        assert len(started) == AHEAD
        answered = [run("about", tmp_path).value["pid"] for _ in range(4)]
    assert answered[:3] == started
    assert answered[3] not in started


def test_folder_and_environment_are_those_of_the_call(tmp_path, started, monkeypatch):
    monkeypatch.setattr(sys, "path", search_path())  # '' among them would move with the folder
    with standing_by([(HERE,)]):
        monkeypatch.setenv("STANDBY_MARK", "set later")
        monkeypatch.chdir(tmp_path)
        found = run("about", tmp_path).value
    assert found["pid"] in started
    assert (found["folder"], found["mark"]) == (str(tmp_path), "set later")


def test_another_search_path_gets_another_child(tmp_path, started, monkeypatch):
    (tmp_path / "here").mkdir()
    with standing_by([(HERE,)]):
        monkeypatch.syspath_prepend(str(tmp_path / "here"))
        assert run("about", tmp_path).value["pid"] not in started


def test_what_an_import_prints_stands_in_the_log(tmp_path, started, monkeypatch):
    (tmp_path / "chatter_on_import.py").write_text(
        "import os\nprint('said on import', flush=True)\ndef pid(): return os.getpid()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with standing_by([("chatter_on_import",)]):
        assert run("pid", tmp_path, "chatter_on_import").value == started[0]
    assert (tmp_path / "x.log").read_text() == "said on import\n"


def test_a_crash_on_import_is_told_as_ever(tmp_path, started, monkeypatch):
    (tmp_path / "crash_on_import.py").write_text("import os\nos.write(2, b'loading kernels')\nos.abort()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with standing_by([("crash_on_import",)]), pytest.raises(StageError) as caught:
        run("pid", tmp_path, "crash_on_import")
    assert "crashed with SIGABRT" in str(caught.value)
    assert "last line of the log: loading kernels" in str(caught.value)
    assert not any(map(is_alive, started))


def test_a_module_that_is_missing_is_told_by_the_call(tmp_path, started):
    with standing_by([(HERE, "no_such_package")]):
        assert run("about", tmp_path).value["pid"] == started[0]
    with standing_by([("no_such_module",)]), pytest.raises(StageError, match="No module named 'no_such_module'"):
        run("pid", tmp_path, "no_such_module")


def test_a_crash_in_the_call_names_signal_and_last_line(tmp_path, started):
    with standing_by([(HERE,)]), pytest.raises(StageError) as caught:
        run("segfault", tmp_path)
    assert "crashed with SIGSEGV" in str(caught.value)
    assert "last line of the log: optimizing node conv_7" in str(caught.value)
    assert not is_alive(started[0])


def test_an_error_of_the_call_crosses(tmp_path, started):
    with standing_by([(HERE,)]), pytest.raises(StageError, match=r"^stage 'simplify': axis 'batch' is gone$"):
        run("refuse", tmp_path)
    assert len(started) == 1


def test_a_call_that_takes_too_long_is_stopped(tmp_path, started):
    with standing_by([(HERE,)]), pytest.raises(OutOfTimeError, match="did not finish within 1 s"):
        run("sleep", tmp_path, timeout_s=1.0)
    assert not is_alive(started[0])


def test_the_limit_of_memory_is_the_calls_own(tmp_path, started):
    with standing_by([(HERE,)] * 2):
        assert run("limit", tmp_path, memory_bytes=512 << 20).value == 512 << 20
        assert run("limit", tmp_path).value != 512 << 20
    assert len(started) == 2


def test_none_outlives_the_block(started):
    with contextlib.suppress(KeyboardInterrupt), standing_by([(HERE,)] * 2):
        assert len(started) == 2
        raise KeyboardInterrupt
    assert not any(map(is_alive, started))


def test_on_one_processor_none_waits(tmp_path, started, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    with standing_by([(HERE,)]):
        assert run("about", tmp_path).value["pid"] > 0
    assert started == []


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_child_that_waits_ends_with_its_parent(tmp_path):
    code = (
        "import os, time\nfrom optimizer.isolated.standby import Child, search_path\n"
        "child = Child(('json',), search_path())\nchild._ours.recv(1)\nprint(child.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)
