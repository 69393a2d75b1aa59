"""Children that import ahead answer as those started for a call do, and none of them outlives the block."""

import contextlib
import ctypes
import itertools
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from optimizer.errors import StageError
from optimizer.isolated import OutOfTimeError, run_isolated
from optimizer.isolated import standby as standby_module
from optimizer.isolated.standby import AHEAD, search_path, standing_by
from optimizer.pipeline import execute as execute_module

HERE = __name__


# What the children run.
def about():
    sys.stdout.write("said in the call\n")
    os.write(2, b"straight to the descriptor\n")
    return {
        "pid": os.getpid(),
        "folder": str(Path.cwd()),
        "input": sys.stdin.read(),
    }


def texts_beside_the_request(folder):
    folders = Path(folder).glob("optimizer-*/*")
    return {"pid": os.getpid(), "texts": [path.read_text() for path in folders]}


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


def run(name, tmp_path, module=HERE, arguments=None, **limits):
    return run_isolated(f"{module}:{name}", arguments or {}, log=tmp_path / "x.log", what="stage 'simplify'", **limits)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


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


def test_a_call_with_another_environment_starts_its_own_child(tmp_path, started, monkeypatch):
    """What was read on import would be the old one."""
    (tmp_path / "reads_on_import.py").write_text(
        "import os\nREAD = os.environ.get('STANDBY_MARK')\n"
        "def marks(): return [os.getpid(), READ, os.environ.get('STANDBY_MARK')]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with standing_by([("reads_on_import",)] * 3):
        monkeypatch.setenv("STANDBY_MARK", "set later")
        pid, *marks = run("marks", tmp_path, "reads_on_import").value
    assert pid not in started
    assert marks == ["set later", "set later"]


def test_what_a_library_sets_for_itself_on_import_costs_no_child(tmp_path, started, monkeypatch):
    names = ("TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with standing_by([(HERE,)]):
        for name in names:
            monkeypatch.setenv(name, "set on import")
        assert run("about", tmp_path).value["pid"] == started[0]


def test_the_environment_stands_in_no_file(tmp_path, started, monkeypatch):
    monkeypatch.setenv("STANDBY_MARK", "a secret that no file holds")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with standing_by([(HERE,)]):
        found = run("texts_beside_the_request", tmp_path, arguments={"folder": str(tmp_path)}).value
    assert found["pid"] == started[0]
    assert found["texts"]
    assert not any("a secret that no file holds" in text for text in found["texts"])


@pytest.mark.parametrize("moves", [False, True])
def test_a_relative_log_lies_in_the_folder_of_the_call(tmp_path, started, monkeypatch, moves):
    monkeypatch.setattr(sys, "path", search_path())  # '' among them would move with the folder
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    monkeypatch.chdir(before)
    with standing_by([(HERE,)]):
        if moves:
            monkeypatch.chdir(after)
        found = run_isolated(f"{HERE}:about", {}, log=Path("x.log"), what="stage 'simplify'").value
    assert (found["pid"] in started) is not moves
    folder = after if moves else before
    assert found["folder"] == str(folder)
    assert "said in the call" in (folder / "x.log").read_text()
    assert [*tmp_path.rglob("x.log")] == [folder / "x.log"]


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


def test_a_child_that_died_while_it_waited_is_told_and_another_one_answers(tmp_path, started, monkeypatch):
    (tmp_path / "dies_once.py").write_text(
        "import os, time\nfrom pathlib import Path\nprint('loading kernels', flush=True)\n"
        "first = Path(__file__).with_suffix('.first')\n"
        "if not first.exists():\n    first.touch()\n    time.sleep(60)\n"
        "def pid(): return os.getpid()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with standing_by([("dies_once",)]):
        wait_for((tmp_path / "dies_once.first").exists)
        os.kill(started[0], signal.SIGKILL)
        wait_for(lambda: not is_alive(started[0]))
        assert run("pid", tmp_path, "dies_once").value not in started
    assert (tmp_path / "x.log").read_text().splitlines() == [
        "loading kernels",
        "optimizer: a child that imported ahead had ended by signal 9; another one was started",
        "loading kernels",
    ]


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


def test_the_time_of_a_call_includes_what_is_left_of_the_imports(tmp_path, started, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text(
        "import os, time\nprint('loading kernels', flush=True)\ntime.sleep(4)\ndef pid(): return os.getpid()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    begun = time.monotonic()
    with standing_by([("slow_to_import",)]), pytest.raises(OutOfTimeError, match="did not finish within 1 s") as caught:
        run("pid", tmp_path, "slow_to_import", timeout_s=1.0)
    assert time.monotonic() - begun < 3.5
    assert "last line of the log: loading kernels" in str(caught.value)
    assert not any(map(is_alive, started))


def test_a_call_within_its_time_waits_for_the_imports(tmp_path, started, monkeypatch):
    (tmp_path / "quick_to_import.py").write_text("import os, time\ntime.sleep(0.5)\ndef pid(): return os.getpid()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with standing_by([("quick_to_import",)]):
        assert run("pid", tmp_path, "quick_to_import", timeout_s=30.0).value == started[0]


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


@pytest.fixture
def two_modules(tmp_path, monkeypatch):
    for name in ("module_a", "module_b"):
        (tmp_path / f"{name}.py").write_text("import os\ndef pid(): return os.getpid()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return [("module_a",), ("module_a",), ("module_b",), ("module_b",)]


def test_a_step_that_calls_nobody_keeps_no_child_from_the_next(tmp_path, started, two_modules, monkeypatch):
    """As `execute` says it: both steps of module_a are reused after all, or failed."""
    answered = []

    def attempt(step, shop, done):
        if step.id > 2:
            answered.append(run("pid", tmp_path, "module_b").value)

    monkeypatch.setattr(execute_module, "_attempt", attempt)
    steps = [
        SimpleNamespace(id=n, stage=SimpleNamespace(preloads=modules)) for n, modules in enumerate([(), *two_modules])
    ]
    planned = [SimpleNamespace(step=step, reusable=False) for step in steps]
    execute_module.execute(
        SimpleNamespace(sources={}, steps=planned, derivation=SimpleNamespace(steps=steps)), SimpleNamespace()
    )
    assert len(answered) == 2
    assert set(answered) <= set(started)
    assert not any(map(is_alive, started))


def test_a_step_that_called_keeps_the_children_of_the_next(tmp_path, started, two_modules):
    with standing_by(two_modules) as standby:
        answered = []
        for n, (module,) in enumerate(two_modules):
            answered.append(run("pid", tmp_path, module).value)
            standby.expect(two_modules[n + 1 :])
    assert answered == started


@pytest.fixture
def refused(monkeypatch):
    """The numbers, from 0, of the waiting children that the machine refuses to start."""
    numbers, count, start = set(), itertools.count(), subprocess.Popen

    def popen(command, *arguments, **options):
        if standby_module._START in command and next(count) in numbers:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return start(command, *arguments, **options)

    monkeypatch.setattr(standby_module.subprocess, "Popen", popen)
    return numbers


def test_where_none_can_be_started_ahead_the_call_starts_one(tmp_path, started, refused):
    refused.update(range(100))
    with standing_by([(HERE,)] * 2):
        assert run("about", tmp_path).value["pid"] > 0
    assert started == []


def test_that_the_next_one_cannot_be_started_takes_no_child_from_this_call(tmp_path, started, refused):
    refused.add(AHEAD)
    with standing_by([(HERE,)] * (AHEAD + 1)):
        answered = [run("about", tmp_path).value["pid"] for _ in range(AHEAD + 1)]
    assert answered[:AHEAD] == started
    assert answered[AHEAD] not in started


def test_one_that_cannot_be_ended_keeps_none_of_the_others(started, monkeypatch):
    end, ended = standby_module.Child.end, []

    def fail_twice(child):
        end(child)
        ended.append(child.process.pid)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(standby_module.Child, "end", fail_twice)
    with pytest.raises(PermissionError), standing_by([(HERE,)] * 2):
        pass
    assert sorted(ended) == sorted(started)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_child_that_imports_ends_with_its_parent(tmp_path):
    """One that waits would end with the socket; one that imports hears nothing but the signal."""
    pid_file = tmp_path / "pid"
    (tmp_path / "sleeps_on_import.py").write_text(
        f"import os, time\nfrom pathlib import Path\nPath({str(pid_file)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    code = (
        f"import sys, time; sys.path.append({str(tmp_path)!r})\nfrom optimizer.isolated.standby import Child\n"
        "child = Child(('sleeps_on_import',))\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    pid = int(pid_file.read_text())
    assert is_alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not is_alive(pid))
    assert not is_alive(pid)
