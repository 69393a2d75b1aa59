"""Spoilt files of the store and of a run, and places that cannot be written: an error that says so, or a new start."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from optimizer.cli import main
from optimizer.disk import disk_error
from optimizer.errors import RecipeError, UsageError
from optimizer.index import ContentIndex
from optimizer.pipeline.build import read_lock
from optimizer.pipeline.remeasure import open_run
from optimizer.store import RECORD, Store
from tests.unit.test_store_races import KEY, record


def settled(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    past = time.time() - 60
    os.utime(path, (past, past))
    return path


# -- the index


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)


def other_table(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE files (name TEXT)")
    db.close()


def torn(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * len(content[4096:])
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [garbage, other_table, torn])
@pytest.mark.parametrize("reopened", [True, False])
def test_a_damaged_index_is_dropped_and_begun_anew(
    tmp_path: Path, spoil: Callable[[Path], None], reopened: bool
) -> None:
    file = settled(tmp_path / "picture.png", b"one")
    said: list[str] = []
    store = Store(tmp_path / "store", said.append)
    before = store.index.digests([file])
    spoil(tmp_path / "store" / "index.sqlite")
    if reopened:
        store = Store(tmp_path / "store", said.append)
    assert store.index.digests([file]) == before
    assert len(said) == 1
    assert said[0].startswith("store: index.sqlite is damaged (")
    assert store.index.digests([file]) == before
    assert store.index.stale() == []
    assert len(said) == 1


def test_a_whole_index_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    file = settled(tmp_path / "picture.png", b"one")
    ContentIndex(tmp_path, report=said.append).digests([file])
    ContentIndex(tmp_path, report=said.append)._mend()  # as after another process mended it
    assert said == []
    assert rows(tmp_path) == [str(file)]


def rows(root: Path) -> list[str]:
    db = sqlite3.connect(root / "index.sqlite")
    found = [row[0] for row in db.execute("SELECT path FROM files")]
    db.close()
    return found


def test_prune_forgets_files_that_are_gone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept, gone = settled(tmp_path / "kept", b"one"), settled(tmp_path / "gone", b"two")
    store.index.digests([kept, gone])
    gone.unlink()
    store.prune(30)
    assert rows(tmp_path / "store") == [str(kept)]


# -- entries


def test_verify_counts_a_damaged_file_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = settled(store.build(KEY, record)[0].artifact("onnx").file, b"hello")
    assert store.find(KEY) is not None  # now the index remembers it too
    stat = file.stat()
    file.write_text("hellO")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(store.verify()) == 1
    assert store.verify() == []


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"record": {}, "files": {}}', '{"record": 1, "files": []}', b"\xff"]
)
def test_a_damaged_record_is_listed_verified_and_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str | bytes | None
) -> None:
    monkeypatch.setenv("OPTIMIZE_HOME", str(tmp_path))
    store = Store(tmp_path / "store")
    store.build("1" * 64, record)
    spoilt = store.build(KEY, record)[0].folder / RECORD
    if content is None:
        spoilt.unlink()
    else:
        spoilt.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["cache", "ls"]) == 0
    out, err = capsys.readouterr()
    assert "abababab  (damaged)" in out
    assert "11111111  export" in out
    assert "1 damaged: optimize cache verify" in err
    assert main(["cache", "verify"]) == 4
    assert f"abababab: {RECORD}" in capsys.readouterr().out
    assert main(["cache", "verify"]) == 0
    assert store.build(KEY, record)[1] is False


# -- recipe.lock.json and run.json


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"keys": []}', '{"keys": {"export": 1}}', "null"])
def test_a_lock_file_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    recipe = cast("Any", SimpleNamespace(path=tmp_path / "recipe.yaml"))
    (tmp_path / "recipe.lock.json").write_text(content)
    with pytest.raises(RecipeError, match="without --locked"):
        read_lock(recipe)
    (tmp_path / "recipe.lock.json").write_text('{"keys": {"export": "ab"}}')
    assert read_lock(recipe) == {"export": "ab"}


CANDIDATE = {
    "artifact": "artifacts/fp32", "format": "onnx", "digest": "ab", "variant": "fp32", "precision": "fp32",
    "runtime": "onnxruntime", "graph": None, "graph_digest": None,
}  # fmt: skip
RUN: dict[str, Any] = {
    "schema": 1, "files": {"gone.bin": "ab"}, "settings": {}, "origin": "/", "evaluation": {},
    "candidates": {"fp32": CANDIDATE},
}  # fmt: skip


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "its schema is none, this version reads 1"),
        ({}, "its schema is none, this version reads 1"),
        (RUN | {"schema": 2}, "its schema is 2, this version reads 1"),
        ({"schema": 1}, "lacks or misstates files, settings, origin, evaluation, candidates"),
        (RUN | {"files": []}, "lacks or misstates files"),
        (RUN | {"candidates": {"fp32": {}}}, "lacks or misstates candidates.fp32"),
        (RUN | {"candidates": {"fp32": CANDIDATE | {"runtime": "none"}}}, "lacks or misstates candidates.fp32"),
        (RUN | {"candidates": {"fp32": CANDIDATE | {"graph": "x"}}}, "lacks or misstates candidates.fp32"),
        (RUN | {"candidates": {}}, "lacks or misstates candidates.fp32"),
    ],
)
def test_a_run_of_another_shape_is_refused(tmp_path: Path, document: object, said: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=said) as caught:
        open_run(tmp_path, cast("Any", SimpleNamespace(baseline="fp32")), {})
    assert caught.value.exit_code == 2


def test_a_run_of_the_right_shape_gets_past_that(tmp_path: Path) -> None:
    torch = CANDIDATE | {"runtime": "torch", "format": "checkpoint"}
    (tmp_path / "run.json").write_text(json.dumps(RUN | {"candidates": {"fp32": CANDIDATE, "fp32@torch": torch}}))
    with pytest.raises(Exception, match=r"gone\.bin: is missing"):
        open_run(tmp_path, cast("Any", SimpleNamespace(baseline="fp32")), {})


# -- OPTIMIZE_HOME


def file_as_home(place: Path) -> Path:
    place.write_text("a file")
    return place


def file_above_home(place: Path) -> Path:
    place.write_text("a file")
    return place / "below"


def file_as_store(place: Path) -> Path:
    place.mkdir()
    (place / "store").write_text("a file")
    return place


def folder_as_index(place: Path) -> Path:
    (place / "store" / "index.sqlite").mkdir(parents=True)
    return place


def broken_link(place: Path) -> Path:
    place.symlink_to(place.parent / "nowhere" / "at all")
    return place


def too_long(place: Path) -> Path:
    return place / ("x" * 300)


@pytest.mark.parametrize(
    "spoil", [file_as_home, file_above_home, file_as_store, folder_as_index, broken_link, too_long]
)
def test_a_home_that_cannot_be_written_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Path],
) -> None:
    place = tmp_path / "home"
    monkeypatch.setenv("OPTIMIZE_HOME", str(spoil(place)))
    assert main(["cache", "ls"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {place}")
    assert "cannot be written" in err
    assert "OPTIMIZE_HOME" in err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_home_that_turns_read_only_is_named_wherever_that_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "runs" / "tiny" / "0001"))

    monkeypatch.setenv("OPTIMIZE_HOME", str(tmp_path))
    monkeypatch.setattr(Store, "prune", refuse)
    assert main(["cache", "prune"]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path}/runs/tiny/0001: cannot be written: {os.strerror(number)}" in err


def test_an_error_elsewhere_is_not_blamed_on_the_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    elsewhere = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "data.npz"))
    assert disk_error(elsewhere, tmp_path / "home") is elsewhere
    ours = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "home" / "x"))
    assert disk_error(ours, tmp_path / "home") is ours
