"""The content index: sha256 of files, remembered so that unchanged files are not read again."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from optimizer.digest import sha256_file
from optimizer.filelock import locked

# A file changed so shortly before it was read may change again within the same clock tick (git's "racy" entries).
_SETTLED_NS = 2_000_000_000
_TABLE = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, mtime INT, sha256 TEXT)"
_ROWS = "SELECT path, size, mtime, sha256 FROM files"
# SQLITE_ERROR is what a table of other columns gives.
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)
_AS_OSERROR = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}
_T = TypeVar("_T")


class ContentIndex:
    """sha256 of files by path, size and modification time. A damaged index is reported, dropped and begun anew."""

    def __init__(self, root: Path, *, recompute: bool = False, report: Callable[[str], None] = lambda _: None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._recompute = recompute
        self._report = report
        self._path = root / "index.sqlite"
        self._do(lambda db: db.execute(_TABLE))

    def fresh(self) -> ContentIndex:
        """The same index, but one that reads every file again, whatever it remembers."""
        return ContentIndex(self._root, recompute=True, report=self._report)

    def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do `work` in one transaction, once more with a new index if this one is damaged."""
        try:
            return self._transact(work)
        except sqlite3.DatabaseError as error:
            # DBMOVED: another process dropped a damaged index just now.
            if _code(error) not in _DAMAGED and error.sqlite_errorcode != sqlite3.SQLITE_READONLY_DBMOVED:
                raise self._as_oserror(error) from error
        self._mend()
        try:
            return self._transact(work)
        except sqlite3.DatabaseError as error:
            raise self._as_oserror(error) from error

    def _transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        db = sqlite3.connect(self._path, timeout=60)
        try:
            with db:
                return work(db)
        finally:
            db.close()

    def _as_oserror(self, error: sqlite3.DatabaseError) -> Exception:
        number = _AS_OSERROR.get(_code(error))
        return error if number is None else OSError(number, str(error), str(self._path))

    def _mend(self) -> None:
        """Drop the index unless another process did so meanwhile."""
        with locked(self._root / "index.lock"):
            problem = self._problem()
            if problem is not None:
                self._report(f"store: {self._path.name} is damaged ({problem}); dropped, every file is read again")
                for suffix in ("", "-journal", "-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                self._transact(lambda db: db.execute(_TABLE))

    def _problem(self) -> str | None:
        def look(db: sqlite3.Connection) -> str | None:
            db.execute(_TABLE)
            db.execute(f"{_ROWS} LIMIT 1")
            answer = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            return None if answer == "ok" else answer

        try:
            return self._transact(look)
        except sqlite3.DatabaseError as error:
            return str(error)

    def digests(self, files: list[Path]) -> dict[Path, str]:
        """Return the sha256 of each file.

        Raises: FileNotFoundError for a file that is not there.
        """
        known = {} if self._recompute else self._do(lambda db: _remembered(db, files))
        found: dict[Path, str] = {}
        fresh: list[tuple[str, int, int, str]] = []
        for file in files:
            stat = file.stat()
            name = str(file.absolute())
            remembered = known.get(name)
            if remembered and remembered[:2] == (stat.st_size, stat.st_mtime_ns):
                found[file] = remembered[2]
                continue
            found[file] = sha256_file(file)
            if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
                fresh.append((name, stat.st_size, stat.st_mtime_ns, found[file]))
        if fresh:
            self._do(lambda db: db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", fresh))
        return found

    def stale(self) -> list[Path]:
        """Read every remembered file again; forget and return those whose content is not what was remembered."""
        gone, wrong = [], []
        for name, size, mtime, digest in self._do(lambda db: list(db.execute(_ROWS))):
            path = Path(name)
            try:
                stat = path.stat()
                if (stat.st_size, stat.st_mtime_ns) != (size, mtime):
                    gone.append(name)
                elif sha256_file(path) != digest:
                    wrong.append(name)
            except (FileNotFoundError, NotADirectoryError):
                gone.append(name)
        self._forget(gone + wrong)
        return [Path(name) for name in wrong]

    def forget_gone(self) -> int:
        """Forget the files that are no longer there; return how many."""
        names = [row[0] for row in self._do(lambda db: list(db.execute("SELECT path FROM files")))]
        gone = [name for name in names if not Path(name).is_file()]
        self._forget(gone)
        return len(gone)

    def _forget(self, names: list[str]) -> None:
        if names:
            self._do(lambda db: db.executemany("DELETE FROM files WHERE path = ?", [(name,) for name in names]))


def _remembered(db: sqlite3.Connection, files: list[Path]) -> dict[str, tuple[int, int, str]]:
    known: dict[str, tuple[int, int, str]] = {}
    for start in range(0, len(files), 500):
        names = [str(f.absolute()) for f in files[start : start + 500]]
        marks = ",".join("?" * len(names))
        rows = db.execute(f"{_ROWS} WHERE path IN ({marks})", names)
        known.update({row[0]: (row[1], row[2], row[3]) for row in rows})
    return known


def _code(error: sqlite3.DatabaseError) -> int:
    """Return SQLite's primary code: the lowest byte of the extended one."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF
