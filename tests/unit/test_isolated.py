"""A child process that crashes, hangs or runs out of memory becomes one error, and leaves nothing behind."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from optimizer import isolated
from optimizer.errors import MissingToolError, StageError
from optimizer.isolated import OutOfMemoryError, OutOfTimeError, run_isolated


# What the children run.
def double(number):
    sys.stdout.write("native chatter that is no JSON {")
    os.write(1, b"straight to the descriptor\n")
    return {"doubled": 2 * number}


def modules():
    return sorted(sys.modules)


def segfault():
    os.write(2, b"optimizing node conv_7\n")
    ctypes.string_at(0)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def hoard():
    return len(bytearray(1 << 31))


def native_out_of_memory():
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def sleep(pid_file):
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(60)


def refuse():
    raise MissingToolError("needs tensorrt", where="engine", hint="pip install tensorrt")


def refuse_without_place():
    raise StageError("axis 'batch' is gone")


def fail():
    raise ValueError("axis 3\nis out of range")


def fail_to_allocate():
    raise ValueError("Error parsing message: Arena alloc failed")


def leave():
    raise SystemExit(9)


def hoard_pages(size):
    return len(b"x" * size)


def run(function, tmp_path, **arguments):
    limits = {key: arguments.pop(key) for key in ("memory_bytes", "timeout_s") if key in arguments}
    where = "stage 'simplify'"
    return run_isolated(f"{__name__}:{function.__name__}", arguments, log=tmp_path / "a/x.log", what=where, **limits)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_value_crosses_and_prints_go_to_the_log(tmp_path):
    result = run(double, tmp_path, number=21)
    assert result.value == {"doubled": 42}
    assert result.seconds > 0
    log = (tmp_path / "a/x.log").read_text()
    assert "native chatter" in log
    assert "straight to the descriptor" in log


def test_peak_memory_is_the_childs_own(tmp_path):
    small = run(double, tmp_path, number=1).peak_rss_bytes
    large = run(hoard_pages, tmp_path, size=100_000_000).peak_rss_bytes
    assert 1_000_000 < small < 90_000_000
    assert large - small > 90_000_000


def test_child_start_loads_nothing_heavy(tmp_path):
    loaded = set(run(modules, tmp_path).value)
    # The test module itself brings pytest; what matters is what run_isolated brings.
    assert not loaded & {"torch", "onnx", "numpy", "pydantic", "click", "optimizer.cli"}


def test_segfault_names_signal_last_line_and_log(tmp_path):
    with pytest.raises(StageError) as caught:
        run(segfault, tmp_path)
    text = str(caught.value)
    assert text.startswith("stage 'simplify': the child process crashed with SIGSEGV (a segmentation fault")
    assert "last line of the log: optimizing node conv_7" in text
    assert f"log: {tmp_path}/a/x.log" in text


def test_sigkill_says_probably_memory(tmp_path):
    with pytest.raises(OutOfMemoryError, match=r"was killed by SIGKILL .*memory"):
        run(kill_itself, tmp_path)


@pytest.mark.parametrize("function", [hoard, native_out_of_memory])
def test_out_of_memory_is_named_with_its_limit(tmp_path, function):
    with pytest.raises(OutOfMemoryError, match=r"ran out of memory \(limit: 512 MiB\)"):
        run(function, tmp_path, memory_bytes=512 << 20)


def test_other_words_for_no_memory_are_understood(tmp_path):
    with pytest.raises(
        OutOfMemoryError, match=r"ran out of memory \(limit: 512 MiB\)\n  Free memory, raise the limit, or"
    ):
        run(fail_to_allocate, tmp_path, memory_bytes=512 << 20)
    with pytest.raises(OutOfMemoryError, match=r"ran out of memory\n  Free memory, or use"):
        run(fail_to_allocate, tmp_path)


def test_within_the_limit_the_same_child_succeeds(tmp_path):
    assert run(hoard_pages, tmp_path, size=100_000_000, memory_bytes=512 << 20).value == 100_000_000


def test_timeout_kills_and_says_so(tmp_path):
    with pytest.raises(OutOfTimeError, match=r"did not finish within 3 s and was stopped"):
        run(sleep, tmp_path, pid_file=str(tmp_path / "pid"), timeout_s=3.0)
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_error_of_the_optimizer_crosses_as_itself(tmp_path):
    with pytest.raises(MissingToolError) as caught:
        run(refuse, tmp_path)
    assert str(caught.value) == "engine: needs tensorrt\n  pip install tensorrt"
    assert caught.value.exit_code == 3


def test_error_without_a_place_gets_the_callers(tmp_path):
    with pytest.raises(StageError, match=r"^stage 'simplify': axis 'batch' is gone$"):
        run(refuse_without_place, tmp_path)


def test_python_error_becomes_one_line_with_the_traceback_in_the_log(tmp_path):
    with pytest.raises(StageError, match="stage 'simplify': ValueError: axis 3 is out of range"):
        run(fail, tmp_path)
    assert "Traceback" in (tmp_path / "a/x.log").read_text()


def test_exit_without_result_is_an_error(tmp_path):
    with pytest.raises(StageError, match="ended with exit status 9 and no result"):
        run(leave, tmp_path)


def test_interrupt_kills_the_child(tmp_path):
    pid_file = tmp_path / "pid"

    def interrupt():
        while not (pid_file.exists() and pid_file.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    waker = threading.Thread(target=interrupt)
    waker.start()
    with pytest.raises(KeyboardInterrupt):
        run(sleep, tmp_path, pid_file=str(pid_file))
    waker.join()
    assert not is_alive(int(pid_file.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_child_ends_when_its_parent_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    code = (
        f"import sys; sys.path[:] = {[*sys.path, str(Path(__file__).parent)]!r}\n"
        "from pathlib import Path\nfrom optimizer.isolated import OutOfMemoryError, OutOfTimeError, run_isolated\n"
        f"run_isolated('{Path(__file__).stem}:sleep', {{'pid_file': {str(pid_file)!r}}},"
        f" log=Path({str(tmp_path / 'log')!r}), what='x')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    pid = int(pid_file.read_text())
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


@pytest.mark.parametrize(
    "said",
    [
        "OpenBLAS blas_thread_init: pthread_create failed for thread 1 of 2: Resource temporarily unavailable",
        "OpenBLAS: malloc failed in gemm_driver",
        "numpy/_core/_multiarray_umath.so: failed to map segment from shared object",
    ],
)
def test_a_library_that_the_limit_starves_is_out_of_memory_whatever_it_says_last(tmp_path, said):
    """Without a limit the same words are no proof: another limit, of threads, may have refused them."""
    for limit, kind in ((64 << 20, OutOfMemoryError), (None, StageError)):
        tail = f"{said}\nKeyboardInterrupt\n"
        error = isolated._Failure("here", tmp_path / "log", tail, limit).died(-2, None, False)
        assert type(error) is kind
