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
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

AHEAD = 2  # children that wait at a time: one for the next call, one that imports while it works
_IMPORTS_S = 60.0  # one that still imports after this is given up
_LONGEST = 65536  # bytes of a request's address
_START = (
    "import json, sys\n"
    "given = json.loads(sys.argv[1])\n"
    "sys.path[:] = given['search_path']\n"
    "from optimizer.isolated.standby import _stand_by\n"
    "_stand_by(given)\n"
)


class Child:
    """One process that imports modules and then waits for the one call that it will answer."""

    def __init__(self, modules: Sequence[str], path: Sequence[str]) -> None:
        self.module, self._path = modules[0], list(path)
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  it is closed with the child
        self._ours, theirs = socket.socketpair()
        given = {"search_path": self._path, "modules": list(modules), "parent": os.getpid()}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, json.dumps(given)],
                stdin=theirs.fileno(),
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def answers(self, module: str, path: Sequence[str]) -> bool:
        """Tell whether a call of this module may go to it; another search path may hold another module."""
        return self.module == module and self._path == list(path)

    def serve(self, request: Path, log: Path, stream: IO[bytes]) -> bool:
        """Hand the call over. False where the child died while it imported: a new one will do so within its log."""
        order = {"request": str(request), "log": str(log), "environment": dict(os.environ), "folder": str(Path.cwd())}
        try:
            with self._ours, self._printed as printed:
                self._ours.settimeout(_IMPORTS_S)
                if not self._ours.recv(1):
                    raise EOFError
                printed.seek(0)
                stream.write(printed.read())
                stream.flush()
                request.with_suffix(".order").write_text(json.dumps(order), encoding="utf-8")
                self._ours.sendall(f"{request.with_suffix('.order')}\n".encode())
        except (OSError, EOFError):
            self.end()
            return False
        except BaseException:  # Ctrl-C: nobody else knows this process
            self.end()
            raise
        return True

    def end(self) -> None:
        """Stop it, with whatever it started."""
        self._ours.close()
        self._printed.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Standby:
    """The children of the calls that are expected, in their order, a few at a time."""

    def __init__(self, expected: Sequence[tuple[str, ...]], path: Sequence[str]) -> None:
        self._expected, self._path = list(expected), list(path)
        self._ready: list[Child] = []
        self._fill()

    def take(self, module: str, path: Sequence[str]) -> Child | None:
        """Return a child for a call of this module, and start another one for a later call."""
        found = next((child for child in self._ready if child.answers(module, path)), None)
        if found is not None:
            self._ready.remove(found)
            self._fill()
        return found

    def end(self) -> None:
        """Stop those that nobody called."""
        for child in self._ready:
            child.end()
        self._ready.clear()

    def _fill(self) -> None:
        while self._expected and len(self._ready) < AHEAD:
            self._ready.append(Child(self._expected.pop(0), self._path))


_CURRENT: ContextVar[Standby | None] = ContextVar("standby", default=None)


def search_path() -> list[str]:
    """Return where a child looks for modules."""
    # This package first: other packages append folders that hold an optimizer.py of their own.
    home = str(Path(__file__).absolute().parent.parent.parent)
    return [home, *(str(Path(entry).absolute()) for entry in sys.path)]


@contextlib.contextmanager
def standing_by(expected: Sequence[tuple[str, ...]]) -> Iterator[None]:
    """Let the isolated calls inside find children that have imported already; none of them outlives the block.

    `expected` has the modules of each call in order, first the one whose function is called. A call that was not
    expected starts a child of its own, as all do on a single processor, where nothing is gained.
    """
    several = len(os.sched_getaffinity(0)) > 1
    standby = Standby(expected if several else (), search_path())
    token = _CURRENT.set(standby)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        standby.end()


def called(module: str, request: Path, log: Path, stream: IO[bytes]) -> subprocess.Popen[bytes] | None:
    """Return the process that now answers the request; None where none stood by."""
    standby = _CURRENT.get()
    child = standby.take(module, search_path()) if standby is not None else None
    return child.process if child is not None and child.serve(request, log, stream) else None


def _stand_by(given: Mapping[str, Any]) -> None:
    """Import, say so, and answer one request: the child's whole life."""
    from optimizer.isolated import _die_with, _serve

    _die_with(given["parent"])
    for module in given["modules"]:
        # What cannot be imported is told by the call that needs it.
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(module)
    os.write(0, b"\n")
    address = b""
    while not address.endswith(b"\n"):
        read = os.read(0, _LONGEST)
        if not read:  # nobody will call
            os._exit(0)
        address += read
    order = json.loads(Path(address.decode().rstrip("\n")).read_text(encoding="utf-8"))
    _redirect(order["log"])
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    _serve(json.loads(Path(order["request"]).read_text(encoding="utf-8")))


def _redirect(log: str) -> None:
    """From here on nothing comes in, and all that is printed goes to the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_RDONLY)
    stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for source, target in ((nothing, 0), (stream, 1), (stream, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(stream)
