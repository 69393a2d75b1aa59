"""The artifact store: content-addressed, only successes, written beside and renamed, safe for two builds at once."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimizer.digest import files_digest, sha256_file
from optimizer.errors import StageError
from optimizer.types import Artifact, Format, StageRecord, TensorSpec

RECORD = "record.json"
OUTPUT = "output"
# A file changed so shortly before it was read may change again within the same clock tick (git's "racy" entries).
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored success: its record and the folder of its output."""

    record: StageRecord
    folder: Path
    files: Mapping[str, str]

    def artifact(self, kind: Format) -> Artifact:
        """The output as the artifact that the next stage reads."""
        return Artifact(kind, self.folder / OUTPUT, self.record.output_sha256, self.record.inputs, self.record.outputs)


class ContentIndex:
    """sha256 of files, remembered by path, size and modification time so that unchanged files are not read again."""

    def __init__(self, root: Path, *, recompute: bool = False) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._recompute = recompute
        self._path = root / "index.sqlite"
        with self._open() as db:
            db.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, mtime INT, sha256 TEXT)")

    def fresh(self) -> ContentIndex:
        """The same index, but one that reads every file again, whatever it remembers."""
        return ContentIndex(self._root, recompute=True)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._path, timeout=60)
        try:
            with db:
                yield db
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise OSError(errno.ENOSPC, str(error), str(self._path)) from error
        finally:
            db.close()

    def digests(self, files: list[Path]) -> dict[Path, str]:
        """Return the sha256 of each file."""
        known: dict[str, tuple[int, int, str]] = {}
        if not self._recompute:
            with self._open() as db:
                for start in range(0, len(files), 500):
                    names = [str(f.absolute()) for f in files[start : start + 500]]
                    marks = ",".join("?" * len(names))
                    rows = db.execute(f"SELECT path, size, mtime, sha256 FROM files WHERE path IN ({marks})", names)
                    known.update({row[0]: (row[1], row[2], row[3]) for row in rows})
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
            with self._open() as db:
                db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", fresh)
        return found

    def stale(self) -> list[Path]:
        """Read every remembered file again; forget and return those whose content is not what was remembered."""
        with self._open() as db:
            rows = list(db.execute("SELECT path, size, mtime, sha256 FROM files"))
        gone, wrong = [], []
        for name, size, mtime, digest in rows:
            path = Path(name)
            if not path.is_file() or (path.stat().st_size, path.stat().st_mtime_ns) != (size, mtime):
                gone.append(name)
            elif sha256_file(path) != digest:
                wrong.append(name)
        with self._open() as db:
            db.executemany("DELETE FROM files WHERE path = ?", [(name,) for name in gone + wrong])
        return [Path(name) for name in wrong]


class Store:
    """Entries by key under `root/objects`."""

    def __init__(self, root: Path, report: Callable[[str], None] = lambda _: None) -> None:
        self.root = root
        self.report = report
        for name in ("objects", "tmp", "locks"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.index = ContentIndex(root)

    def folder(self, key: str) -> Path:
        """Where the entry of `key` lies, or would lie."""
        return self.root / "objects" / key[:2] / key

    def find(self, key: str) -> Entry | None:
        """Return the intact entry of `key`. A damaged one is reported and dropped, so that it is built again."""
        folder = self.folder(key)
        if not folder.is_dir():
            return None
        problem, entry = self._read(folder, self.index)
        if problem is None and entry is not None:
            return entry
        self.report(f"store: {key[:8]} is damaged ({problem}); dropped, it will be built again")
        self._remove(folder)
        return None

    def _read(self, folder: Path, index: ContentIndex) -> tuple[str | None, Entry | None]:
        try:
            document = json.loads((folder / RECORD).read_text())
            record = record_from_json(document["record"])
            files: dict[str, str] = document["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{RECORD}: {error}", None
        output = folder / OUTPUT
        missing = [name for name in files if not (output / name).is_file()]
        if missing:
            return f"{missing[0]} is missing", None
        digests = index.digests([output / name for name in files])
        wrong = [name for name, digest in files.items() if digests[output / name] != digest]
        if wrong:
            return f"{wrong[0]} does not have the content that was stored", None
        return None, Entry(record, folder, files)

    def build(self, key: str, write: Callable[[Path], StageRecord]) -> tuple[Entry, bool]:
        """Return the entry of `key` and whether it was reused; without one, `write` fills a folder with the output.

        `write` returns a record whose `output_sha256` this method fills in. Another process that builds the same key
        is waited for, and its result reused.
        Raises: StageError when the disk is full; whatever `write` raises. Neither leaves an entry.
        """
        with self._lock(key):
            entry = self.find(key)
            if entry is not None:
                return entry, True
            temporary = self.root / "tmp" / uuid.uuid4().hex
            try:
                (temporary / OUTPUT).mkdir(parents=True)
                record = write(temporary / OUTPUT)
                self._commit(temporary, key, record)
            except OSError as error:
                raise disk_error(error, self.root) from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            entry = self.find(key)
            if entry is None:
                raise StageError("the entry vanished while it was stored", where=f"store {key[:8]}")
            return entry, False

    def drop(self, key: str) -> None:
        """Remove the entry of `key`, if there is one."""
        with self._lock(key):
            if self.folder(key).is_dir():
                self._remove(self.folder(key))

    def _commit(self, temporary: Path, key: str, record: StageRecord) -> None:
        output = temporary / OUTPUT
        paths = sorted(p for p in output.rglob("*") if p.is_file())
        files = {str(p.relative_to(output)): sha256_file(p) for p in paths}
        fields = {name: getattr(record, name) for name in StageRecord.__slots__}
        sealed = StageRecord(**{**fields, "output_sha256": files_digest(files)})
        text = json.dumps({"record": asdict(sealed), "files": files}, indent=1, sort_keys=True)
        (temporary / RECORD).write_text(text)
        destination = self.folder(key)
        destination.parent.mkdir(exist_ok=True)
        temporary.rename(destination)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        with (self.root / "locks" / key).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.report(f"store: waiting for another build of {key[:8]}")
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _remove(self, folder: Path) -> None:
        """Drop an entry whole: renamed first, so that nobody sees half of it."""
        doomed = self.root / "tmp" / uuid.uuid4().hex
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def entries(self) -> Iterator[Path]:
        """The folders of all entries."""
        return (p for p in sorted(self.root.glob("objects/*/*")) if (p / RECORD).is_file())

    def verify(self) -> list[str]:
        """Read every entry and every remembered file again; drop what is damaged and say what that was."""
        problems = [f"{path}: changed without a new size or time" for path in self.index.stale()]
        for folder in list(self.entries()):
            problem, _ = self._read(folder, self.index.fresh())
            if problem is not None:
                problems.append(f"{folder.name[:8]}: {problem}")
                self._remove(folder)
        return problems

    def prune(self, unused_days: float) -> tuple[int, int]:
        """Drop entries not used for so many days and what broken builds left; return how many and their bytes."""
        limit = time.time() - unused_days * 86_400
        doomed = [p for p in self.entries() if (p / RECORD).stat().st_mtime < limit]
        doomed += [p for p in (self.root / "tmp").iterdir() if p.stat().st_mtime < time.time() - 3_600]
        size = sum(f.stat().st_size for p in doomed for f in p.rglob("*") if f.is_file())
        for folder in doomed:
            self._remove(folder)
        return len(doomed), size

    def touch(self, entry: Entry) -> None:
        """Remember that an entry was used today; `prune` reads it."""
        os.utime(entry.folder / RECORD)


def record_from_json(document: Mapping[str, Any]) -> StageRecord:
    """Read what `Store` wrote of a record."""
    fields = dict(document)
    fields["notes"] = tuple(fields["notes"])
    for side in ("inputs", "outputs"):
        fields[side] = tuple(TensorSpec.from_json(spec) for spec in fields[side])
    return StageRecord(**fields)


def disk_error(error: OSError, place: Path) -> Exception:
    """Turn a full disk into an error that says so; any other OSError stays what it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    place = Path(error.filename).absolute() if isinstance(error.filename, str) else place
    place = next(p for p in (place, *place.parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    return StageError(
        f"the disk is full ({free / 1e6:.0f} MB free); nothing of this step was stored",
        where=str(place),
        hint="Free some space (optimize cache prune), or set OPTIMIZE_HOME to a larger disk, and run it again.",
    )
