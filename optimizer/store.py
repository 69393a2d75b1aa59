"""The artifact store: content-addressed, only successes, written beside and renamed, safe for two builds at once.

objects/ab/abcd...      an entry by its key: record.json and output/
objects/ab/abcd....1    what replaced it. The superseded entry stays a day for those who read it.
tmp/                    entries that are being written, each with a lock that its builder holds
locks/abcd...           held while the entry of that key is built or removed
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimizer.digest import files_digest, sha256_file
from optimizer.disk import disk_error, folder_size, unusable
from optimizer.filelock import locked
from optimizer.index import ContentIndex
from optimizer.types import Artifact, Format, StageRecord, TensorSpec

__all__ = ["RECORD", "ContentIndex", "Entry", "Store", "read_record"]

RECORD = "record.json"
OUTPUT = "output"
_DAY = 86_400.0
# A temporary folder without a lock belongs to a removal, and one so young may get its lock in a moment.
_UNLOCKED_FOR, _LOCKED_WITHIN = 3_600.0, 60.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored success: its record and the folder of its output."""

    record: StageRecord
    folder: Path
    files: Mapping[str, str]

    def artifact(self, kind: Format) -> Artifact:
        """The output as the artifact that the next stage reads."""
        return Artifact(kind, self.folder / OUTPUT, self.record.output_sha256, self.record.inputs, self.record.outputs)


class Store:
    """Entries by key under `root/objects`."""

    def __init__(self, root: Path, report: Callable[[str], None] = lambda _: None) -> None:
        """Open the store, making its folders.

        Raises: UsageError when they cannot be made or written.
        """
        self.root = root
        self.report = report
        try:
            for name in ("objects", "tmp", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)
            self.index = ContentIndex(root, report=report)
        except OSError as error:
            known = disk_error(error, root)
            raise (unusable(error, root) if known is error else known) from error

    def find(self, key: str) -> Entry | None:
        """Return the intact entry of `key`. A damaged one is reported and dropped, so that it is built again."""
        problem, entry = self._look(key)
        if problem is None:
            return entry
        with self._lock(key, wait=False) as held:
            return self._intact(key) if held else None  # whoever holds it builds or drops it

    def use(self, key: str) -> Entry | None:
        """Like `find`, for what is about to be read: `prune` knows that it was used today."""
        with self._lock(key):
            entry = self._intact(key)
            if entry is not None:
                self.touch(entry)
            return entry

    def build(self, key: str, write: Callable[[Path], StageRecord], *, replace: bool = False) -> tuple[Entry, bool]:
        """Return the entry of `key` and whether it was reused; without one, `write` fills a folder with the output.

        `write` returns a record whose `output_sha256` this method fills in. Another process that builds the same key
        is waited for, and its result reused. With `replace`, what `write` fills takes the place of an entry; who
        reads that one goes on reading it.
        Raises: StageError when the disk is full; whatever `write` raises. Neither leaves an entry.
        """
        with self._lock(key):
            entry = None if replace else self._intact(key)
            if entry is not None:
                self.touch(entry)
                return entry, True
            temporary = self.root / "tmp" / uuid.uuid4().hex
            try:
                temporary.mkdir()
                with locked(temporary / "lock"):
                    (temporary / "entry" / OUTPUT).mkdir(parents=True)
                    record = write(temporary / "entry" / OUTPUT)
                    return self._commit(temporary / "entry", key, record), False
            except OSError as error:
                raise disk_error(error, self.root) from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _commit(self, temporary: Path, key: str, record: StageRecord) -> Entry:
        output = temporary / OUTPUT
        paths = sorted(p for p in output.rglob("*") if p.is_file())
        files = {str(p.relative_to(output)): sha256_file(p) for p in paths}
        fields = {name: getattr(record, name) for name in StageRecord.__slots__}
        sealed = StageRecord(**{**fields, "output_sha256": files_digest(files)})
        text = json.dumps({"record": asdict(sealed), "files": files}, indent=1, sort_keys=True)
        (temporary / RECORD).write_text(text)
        before = self._generations(key)
        folder = self.root / "objects" / key[:2] / (f"{key}.{_generation(before[-1]) + 1}" if before else key)
        folder.parent.mkdir(exist_ok=True)
        temporary.rename(folder)
        for superseded, successor in itertools.pairwise(before):
            if successor.stat().st_mtime < time.time() - _DAY:
                self._remove(superseded)
        return Entry(record_from_json(json.loads(text)["record"]), folder, files)

    def _generations(self, key: str) -> list[Path]:
        """The folders of a key's entries; the last one holds, the others were superseded."""
        found = (self.root / "objects" / key[:2]).glob(f"{key}*")
        return sorted((f for f in found if _key(f) == key), key=_generation)

    def _look(self, key: str) -> tuple[str | None, Entry | None]:
        """Return what is wrong with the entry of `key`, or the entry; neither when there is none."""
        folders = self._generations(key)
        return self._read(folders[-1], self.index) if folders else (None, None)

    def _read(self, folder: Path, index: ContentIndex) -> tuple[str | None, Entry | None]:
        problem: str | None = None
        try:
            record, files = read_record(folder)
            output = folder / OUTPUT
            digests = index.digests([output / name for name in files])
            wrong = [name for name, digest in files.items() if digests[output / name] != digest]
            if not wrong:
                return None, Entry(record, folder, files)
            problem = f"{wrong[0]} does not have the content that was stored"
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            problem = f"{Path(str(error.filename)).name} is missing"
        except ValueError as error:
            problem = str(error)
        # An entry that was removed whole while it was read is not damaged: it is not there.
        return (problem, None) if folder.is_dir() else (None, None)

    def _intact(self, key: str) -> Entry | None:
        """Return the intact entry of `key`, whose lock is held; drop a damaged one."""
        problem, entry = self._look(key)
        if problem is not None:
            self.report(f"store: {key[:8]} is damaged ({problem}); dropped, it will be built again")
            self._drop(self._generations(key)[-1])
        return entry

    def _lock(self, key: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        say = f"store: waiting for another build of {key[:8]}"
        return locked(self.root / "locks" / key, wait=wait, waiting=lambda: self.report(say))

    def _drop(self, folder: Path) -> list[int]:
        """Remove an entry, its key's lock held, and those it superseded: none may stand in for it. Return the bytes."""
        doomed = [f for f in self._generations(_key(folder)) if _generation(f) <= _generation(folder)]
        return [self._remove(f) for f in doomed]

    def _remove(self, folder: Path) -> int:
        """Remove a folder whole: renamed first, so that nobody sees half of it. Return its bytes."""
        doomed = self.root / "tmp" / uuid.uuid4().hex
        folder.rename(doomed)
        size = folder_size(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        return size

    def entries(self) -> Iterator[Path]:
        """The folders of all entries, damaged and superseded ones too."""
        return (p for p in sorted(self.root.glob("objects/*/*")) if p.is_dir())

    def verify(self) -> list[str]:
        """Read every entry and every remembered file again; drop what is damaged and say what that was."""
        problems: list[str] = []
        fresh = self.index.fresh()
        for folder in list(self.entries()):
            if self._read(folder, fresh)[0] is None:
                continue
            with self._lock(_key(folder), wait=False) as held:
                problem = self._read(folder, fresh)[0] if held else None
                if problem is not None:
                    problems.append(f"{_key(folder)[:8]}: {problem}")
                    self._drop(folder)
        return problems + [f"{path}: changed without a new size or time" for path in self.index.stale()]

    def prune(self, unused_days: float) -> tuple[int, int]:
        """Drop entries not used for so many days and what broken builds left; return how many and their bytes.

        What another process builds or removes at this moment is left alone.
        """
        sizes: list[int] = []
        for folder in list(self.entries()):
            with self._lock(_key(folder), wait=False) as held:
                if held and folder.is_dir() and self._expired(folder, unused_days):
                    sizes += self._drop(folder)
        for place in list((self.root / "tmp").iterdir()):
            sizes += self._clear(place)
        for lock in list((self.root / "locks").iterdir()):
            with locked(lock, wait=False) as held:
                if held and not self._generations(lock.name):
                    lock.unlink(missing_ok=True)
        self.index.forget_gone()
        return len(sizes), sum(sizes)

    def _expired(self, folder: Path, unused_days: float) -> bool:
        record = folder / RECORD
        if (record if record.is_file() else folder).stat().st_mtime < time.time() - unused_days * _DAY:
            return True
        later = [f for f in self._generations(_key(folder)) if _generation(f) > _generation(folder)]
        return bool(later) and later[0].stat().st_mtime < time.time() - _DAY

    def _clear(self, place: Path) -> list[int]:
        """Remove a temporary folder unless somebody builds in it; return its bytes."""
        try:
            age = time.time() - place.stat().st_mtime
            if not (place / "lock").is_file():
                return [self._remove(place)] if age > _UNLOCKED_FOR else []
            if age < _LOCKED_WITHIN:
                return []
            with locked(place / "lock", wait=False) as held:
                return [self._remove(place)] if held else []
        except FileNotFoundError:  # its builder removed it meanwhile
            return []

    def touch(self, entry: Entry) -> None:
        """Remember that an entry was used today; `prune` reads it."""
        with suppress(FileNotFoundError):
            os.utime(entry.folder / RECORD)


def _key(folder: Path) -> str:
    return folder.name.partition(".")[0]


def _generation(folder: Path) -> int:
    number = folder.name.partition(".")[2]
    return int(number) if number.isdigit() else 0


def read_record(folder: Path) -> tuple[StageRecord, dict[str, str]]:
    """Return an entry's record and the sha256 of each of its files.

    Raises: FileNotFoundError without a record, ValueError for one that the store did not write.
    """
    try:
        document = json.loads((folder / RECORD).read_text())
        record, files = record_from_json(document["record"]), dict(document["files"])
        if not all(isinstance(text, str) for text in (record.stage, *files, *files.values())):
            raise TypeError("not what the store writes")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{RECORD}: {error}") from error
    return record, files


def record_from_json(document: Mapping[str, Any]) -> StageRecord:
    """Read what `Store` wrote of a record."""
    fields = dict(document)
    fields["notes"] = tuple(fields["notes"])
    for side in ("inputs", "outputs"):
        fields[side] = tuple(TensorSpec.from_json(spec) for spec in fields[side])
    return StageRecord(**fields)
