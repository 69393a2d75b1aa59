"""Child processes that import what they will need while this process still works: the next call finds one ready."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

AHEAD = 2  # children that wait at a time: one for the next call, one that imports while it works
_LONGEST = 65536  # bytes of a request's address
# torch's compiler and scikit-learn set these for their own process when they are imported: a child that imports them
# does the same. Counted as a change they would cost the first call of most builds its child.
_SET_ON_IMPORT = frozenset({"TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"})
_START = (
    "import json, sys\n"
    "given = json.loads(sys.argv[1])\n"
    "sys.path[:] = given['search_path']\n"
    "from optimizer.isolated.standby import _stand_by\n"
    "_stand_by(given)\n"
)


class Child:
    """One process that imports modules and then waits for the one call that it will answer."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.modules, self._begun_in = modules, _surroundings()
        given = {"search_path": search_path(), "modules": modules, "parent": os.getpid()}
        with contextlib.ExitStack() as undo:
            self._printed: IO[bytes] = undo.enter_context(tempfile.TemporaryFile())
            self._ours, theirs = socket.socketpair()
            undo.enter_context(self._ours)
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, json.dumps(given)],
                    stdin=theirs.fileno(),
                    stdout=self._printed,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            undo.pop_all()

    def is_current(self) -> bool:
        """Tell whether a child that began now would begin the same: what it read while it imported still holds."""
        return self._begun_in == _surroundings()

    def hand_over(self, request: Path, stream: IO[bytes]) -> bool:
        """Give it the call and the log, at once: it answers when it has imported. False, told in the log, if it died.

        From here on its end is the end of the call.
        """
        try:
            with self._ours:
                socket.send_fds(self._ours, [os.fsencode(request)], [stream.fileno()])
        except OSError:
            self.end(stream)
            code = self.process.returncode
            how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
            stream.write(f"optimizer: a child that imported ahead had ended {how}; another one was started\n".encode())
            stream.flush()
            return False
        return True

    def end(self, stream: IO[bytes] | None = None) -> None:
        """Stop it, with whatever it started; `stream` gets what it printed before it had the log. Once is enough."""
        if self._printed.closed:
            return
        with self._printed as printed, self._ours:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            if stream is not None:
                printed.seek(0)
                stream.write(printed.read())


class Standby:
    """The children of the calls that are expected, in their order, a few at a time.

    That one cannot be started is no error: the call then starts its own, and says what is wrong.
    """

    def __init__(self, ahead: int = AHEAD) -> None:
        self._ahead = ahead
        self._expected: list[tuple[str, ...]] = []
        self._ready: list[Child] = []

    def expect(self, calls: Iterable[tuple[str, ...]]) -> None:
        """Expect these calls and no others from now on: the modules of each, first the one whose function is called."""
        self._expected = list(calls)
        for child in list(self._ready):
            if child.modules in self._expected and child.is_current():
                self._expected.remove(child.modules)
            else:
                self._ready.remove(child)
                child.end()
        self.fill()

    def take(self, module: str) -> Child | None:
        """Return the child for a call of this module."""
        child = next((child for child in self._ready if child.modules[0] == module), None)
        if child is None:
            return None
        self._ready.remove(child)
        if child.is_current():
            return child
        child.end()
        return None

    def fill(self) -> None:
        """Start the children of the next calls."""
        while self._expected and len(self._ready) < self._ahead:
            try:
                self._ready.append(Child(self._expected.pop(0)))
            except OSError:
                self._expected.clear()

    def end(self) -> None:
        """Stop those that nobody called."""
        with contextlib.ExitStack() as stack:  # each of them, whatever the others raise
            for child in self._ready:
                stack.callback(child.end)
            self._ready = []


_CURRENT: ContextVar[Standby | None] = ContextVar("standby", default=None)


def search_path() -> list[str]:
    """Return where a child looks for modules."""
    # This package first: other packages append folders that hold an optimizer.py of their own.
    home = str(Path(__file__).absolute().parent.parent.parent)
    return [home, *(str(Path(entry).absolute()) for entry in sys.path)]


def _surroundings() -> tuple[list[str], dict[str, str], tuple[int, int]]:
    """Return what a child takes over from this process: search path, environment and working folder."""
    folder = os.stat(".")  # noqa: PTH116  works where the folder has lost its name
    environment = {name: value for name, value in os.environ.items() if name not in _SET_ON_IMPORT}
    return search_path(), environment, (folder.st_dev, folder.st_ino)


@contextlib.contextmanager
def standing_by(calls: Iterable[tuple[str, ...]]) -> Iterator[Standby]:
    """Let the isolated calls inside find children that have imported already; none of them outlives the block.

    `calls` is what `Standby.expect` takes. A call that was not expected starts a child of its own, as all do on a
    single processor, where nothing is gained.
    """
    from optimizer.environment import usable_cores  # which children have no need of

    standby = Standby(AHEAD if usable_cores() > 1 else 0)
    token = _CURRENT.set(standby)
    try:
        standby.expect(calls)
        yield standby
    finally:
        _CURRENT.reset(token)
        standby.end()


@contextlib.contextmanager
def called(module: str, request: Path, stream: IO[bytes]) -> Iterator[subprocess.Popen[bytes] | None]:
    """Give the process that now answers the request, None where none stood by; `stream` writes the log."""
    standby = _CURRENT.get()
    child = standby.take(module) if standby is not None else None
    if standby is None or child is None:
        yield None
        return
    try:
        answers = child.hand_over(request, stream)
        standby.fill()
        yield child.process if answers else None
    finally:
        child.end(stream)


def _stand_by(given: Mapping[str, Any]) -> None:
    """Import, then answer one request: the child's whole life."""
    from optimizer.isolated import _die_with, _serve

    _die_with(given["parent"])
    for module in given["modules"]:
        # What cannot be imported is told by the call that needs it.
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(module)
    channel = socket.socket(fileno=0)
    request, logs, _, _ = socket.recv_fds(channel, _LONGEST, 1)
    channel.detach()
    if not request:  # nobody will call
        os._exit(0)
    _redirect(logs[0])
    _serve(json.loads(Path(os.fsdecode(request)).read_text(encoding="utf-8")))


def _redirect(log: int) -> None:
    """From here on nothing comes in, and all that is printed goes to the log, first what was printed so far."""
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(log, "ab") as stream:
        stream.write(os.pread(1, os.fstat(1).st_size, 0))
        stream.flush()
        os.ftruncate(1, 0)  # the parent adds the rest, which after this is nothing
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(nothing)
