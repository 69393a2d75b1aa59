"""Run one function in a child process: native code may crash or run out of memory there, and this process lives on."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from optimizer import errors
from optimizer.errors import OptimizerError, StageError
from optimizer.isolated.standby import called, search_path
from optimizer.peak_memory import peak_rss_bytes

# -P: the current folder must not shadow the standard library before the parent's search path is taken over.
_START = (
    "import json, sys\n"
    "request = json.load(open(sys.argv[1], encoding='utf-8'))\n"
    "sys.path[:] = request['search_path']\n"
    "from optimizer.isolated import _serve\n"
    "_serve(request)\n"
)
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = (
    "Memory allocation still failed",
    "std::bad_alloc",
    "MemoryError",
    "Cannot allocate memory",
    "out of memory",
    "OutOfMemory",
)
_NO_MEMORY = ("std::bad_alloc", "Cannot allocate memory", "Arena alloc failed")  # other words for a MemoryError
# What libraries say where a limit of memory refuses them threads (OpenBLAS then raises SIGINT), buffers or their code.
_STARVED = ("pthread_create failed", "OpenBLAS: malloc failed", "failed to map segment from shared object")
_TAIL_BYTES = 16384
_LINE_LENGTH = 300


class OutOfTimeError(StageError):
    """The child did not end in its time; `what` and `hint` say so, a caller may add which option gives more."""


class OutOfMemoryError(StageError):
    """The child ran out of memory: within its own limit, or all that the machine had."""


@dataclass(frozen=True, slots=True)
class IsolatedResult:
    """What the function returned, and what it cost."""

    value: Any
    seconds: float
    peak_rss_bytes: int


def run_isolated(
    function: str,
    arguments: Mapping[str, Any],
    *,
    log: Path,
    what: str,
    memory_bytes: int | None = None,
    timeout_s: float | None = None,
) -> IsolatedResult:
    """Call `function` ("module:name") with keyword `arguments` in a child; both ways the values are plain JSON.

    Whatever the child or native code in it prints goes to `log`. `what` locates the failure in the error's text.
    Units: `memory_bytes` bounds the child's private memory (Linux RLIMIT_DATA); `timeout_s` bounds the whole call, what
    the child still has to import included.
    Raises: the OptimizerError that the function raised, as itself; OSError when the disk is full; StageError for every
    other end of the child, OutOfTimeError and OutOfMemoryError among them.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="optimizer-") as folder, log.open("ab") as stream:
        request, response = Path(folder, "request.json"), Path(folder, "response.json")
        request.write_text(
            json.dumps(
                {
                    "function": function,
                    "arguments": dict(arguments),
                    "response": str(response),
                    "search_path": search_path(),
                    "memory_bytes": memory_bytes,
                    "parent": os.getpid(),
                }
            ),
            encoding="utf-8",
        )
        mark, kills, begun = stream.tell(), _out_of_memory_kills(), time.monotonic()
        with called(function.partition(":")[0], request, stream) as ahead:
            end = _wait(ahead or _start(request, stream), timeout_s)
        seconds = time.monotonic() - begun
        answer = _read(response) if end in (0, 1) else None  # 1: an error nobody caught
    place = _Failure(what, log, _tail(log, mark), memory_bytes)
    if answer is None:
        raise place.died(end, timeout_s, _out_of_memory_kills() > kills)
    if "error" in answer:
        raise _known_error(answer["error"], what)
    if "exception" in answer:
        if answer["exception"]["errno"] in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(answer["exception"]["errno"], answer["exception"]["message"])
        raise place.raised(answer["exception"])
    return IsolatedResult(answer["value"], seconds, int(answer["peak_rss_bytes"]))


def _start(request: Path, stream: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START, str(request)],
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _wait(child: subprocess.Popen[bytes], timeout_s: float | None) -> int | None:
    """Wait for the child's end; None when time ran out. It never outlives this call, Ctrl-C included."""
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # The whole group: what the child started goes with it. An already reaped leader leaves its group to others.
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _read(response: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(response.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _known_error(document: Mapping[str, Any], what: str) -> OptimizerError:
    """Rebuild an error of `optimizer.errors`: its kind decides the exit code. One that names no place gets `what`."""
    kind = getattr(errors, str(document["kind"]), StageError)
    error: OptimizerError = kind(document["what"], where=document["where"] or what, hint=document["hint"])
    return error


@dataclass(frozen=True, slots=True)
class _Failure:
    """Words the one error that a dead child becomes."""

    what: str
    log: Path
    tail: str  # of the log, from where this call began
    memory_bytes: int | None

    @property
    def last_line(self) -> str:
        """The last line that says something."""
        lines = self.tail.partition("Fatal Python error:")[0].splitlines()  # what faulthandler adds names no cause
        spoken = [line.strip() for line in lines if any(c.isalnum() for c in line)]
        return spoken[-1][:_LINE_LENGTH] if spoken else ""

    def raised(self, exception: Mapping[str, str]) -> StageError:
        starved = self.memory_bytes and any(sign in exception["message"] for sign in _STARVED)
        if exception["type"] == "MemoryError" or starved or any(s in exception["message"] for s in _NO_MEMORY):
            return self._out_of_memory(f"ran out of memory{self._limit()}")
        text = " ".join(exception["message"].split())[:_LINE_LENGTH]
        said = f"{exception['type']}: {text}" if text else exception["type"]
        return StageError(said, where=self.what, hint=f"The traceback stands in the log.\nlog: {self.log}")

    def died(self, end: int | None, timeout_s: float | None, kernel_killed: bool) -> StageError:
        if end is None:
            happened = f"did not finish within {timeout_s:g} s and was stopped"
            return self._error(happened, "", OutOfTimeError)
        if any(sign in self.last_line for sign in _OUT_OF_MEMORY) or (self.memory_bytes and self._starved()):
            return self._out_of_memory(f"ran out of memory{self._limit()}")
        if end == -signal.SIGKILL:
            sure = "by the kernel, which was out of memory" if kernel_killed else "(probably for lack of memory)"
            return self._out_of_memory(f"was killed by SIGKILL {sure}")
        if end < 0:
            name = signal.Signals(-end).name
            known = {"SIGSEGV": "a segmentation fault in native code", "SIGABRT": "native code aborted"}
            return self._error(
                f"crashed with {name} ({known.get(name, 'ended by a signal')})",
                "The model or the version of the native library is at fault: try another version of it.",
            )
        return self._error(f"ended with exit status {end} and no result", "The log holds what it printed.")

    def _starved(self) -> bool:
        """Tell whether a library said anywhere that the limit kept it from starting: what follows names no memory."""
        return any(sign in self.tail for sign in _STARVED)

    def _error(self, happened: str, advice: str, kind: type[StageError] = StageError) -> StageError:
        said = f"last line of the log: {self.last_line}" if self.last_line else ""
        hint = "\n".join(filter(None, [advice, said, f"log: {self.log}"]))
        return kind(f"the child process {happened}", where=self.what, hint=hint)

    def _limit(self) -> str:
        return f" (limit: {self.memory_bytes / 2**20:.0f} MiB)" if self.memory_bytes else ""

    def _out_of_memory(self, happened: str) -> StageError:
        raised = ", raise the limit" if self.memory_bytes else ""
        return self._error(
            happened, f"Free memory{raised}, or use a smaller model, batch or profile.", OutOfMemoryError
        )


def _tail(log: Path, start: int) -> str:
    """Return the end of this call's part of the log."""
    with log.open("rb") as stream:
        stream.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        return stream.read().decode("utf-8", "replace")


def _out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _serve(request: Mapping[str, Any]) -> None:
    """Answer one request: the child's whole life."""
    import faulthandler

    faulthandler.enable()
    _die_with(request["parent"])
    if request["memory_bytes"]:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (request["memory_bytes"], request["memory_bytes"]))
    response = Path(request["response"])
    sys.excepthook = _answer_errors(response)
    module, _, name = request["function"].partition(":")
    value = getattr(importlib.import_module(module), name)(**request["arguments"])
    response.write_text(json.dumps({"value": value, "peak_rss_bytes": peak_rss_bytes()}), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    # Native libraries crash in their destructors often enough; the answer is written, so leave without them.
    os._exit(0)


def _answer_errors(response: Path) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Return the hook for whatever nobody caught: an OptimizerError crosses as itself, the rest as one sentence."""

    def answer(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        document: dict[str, Any]
        if isinstance(error, OptimizerError):
            document = {"error": {"kind": kind.__name__, "what": error.what, "where": error.where, "hint": error.hint}}
        else:
            sys.__excepthook__(kind, error, trace)
            number = error.errno if isinstance(error, OSError) else None
            document = {"exception": {"type": kind.__name__, "message": str(error), "errno": number}}
        response.write_text(json.dumps(document), encoding="utf-8")

    return answer


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, even by SIGKILL: no orphan keeps building."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
