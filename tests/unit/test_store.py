from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from optimizer.errors import StageError
from optimizer.index import ContentIndex
from optimizer.store import RECORD, Store
from optimizer.types import StageRecord, TensorSpec

KEY = "ab" * 32
SPEC = TensorSpec("image", "float32", ("batch", 3, 8, 8))


def record(folder: Path, text: str = "hello") -> StageRecord:
    (folder / "model.onnx").write_text(text)
    return StageRecord("export", KEY, {"stage": "export"}, "", 1.5, 1000, ("a note",), (SPEC,))


def old(path: Path) -> None:
    """Make a file look settled: the index does not trust what changed a moment ago."""
    past = time.time() - 60
    os.utime(path, (past, past))


def test_an_entry_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry, reused = store.build(KEY, record)
    again, reused_again = store.build(KEY, lambda _: pytest.fail("built twice"))
    assert (reused, reused_again) == (False, True)
    assert again.record == entry.record
    artifact = again.artifact("onnx")
    assert artifact.file.read_text() == "hello"
    assert artifact.inputs == (SPEC,)
    assert len(artifact.digest) == 64


def test_the_digest_follows_the_content_and_not_the_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = store.build("1" * 64, record)[0].record.output_sha256
    same = store.build("2" * 64, record)[0].record.output_sha256
    other = store.build("3" * 64, lambda f: record(f, "other"))[0].record.output_sha256
    assert one == same != other


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> StageRecord:
        record(folder)
        raise StageError("no")

    with pytest.raises(StageError):
        store.build(KEY, fail)
    assert store.find(KEY) is None
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def interrupt(folder: Path) -> StageRecord:
        record(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build(KEY, interrupt)
    assert list(store.entries()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_damaged_entry_is_reported_dropped_and_built_again(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path, said.append)
    file = store.build(KEY, record)[0].artifact("onnx").file
    file.write_text("hellO")
    entry, reused = store.build(KEY, record)
    assert not reused
    assert entry.artifact("onnx").file.read_text() == "hello"
    assert "model.onnx does not have the content that was stored" in said[0]


def test_a_missing_file_and_an_unreadable_record_count_as_damage(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path, said.append)
    store.build(KEY, record)[0].artifact("onnx").file.unlink()
    assert store.find(KEY) is None
    (store.build(KEY, record)[0].folder / RECORD).write_text("{")
    assert store.find(KEY) is None
    assert len(said) == 2


def test_verify_finds_a_flipped_byte_that_kept_size_and_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.build(KEY, record)[0].artifact("onnx").file
    old(file)
    assert store.find(KEY) is not None  # remembers size and time
    stat = file.stat()
    file.write_text("hellO")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.find(KEY) is not None  # the twin: the quick look cannot see it
    assert any("content" in p or "size or time" in p for p in store.verify())
    assert store.find(KEY) is None


def test_a_full_disk_is_named_and_leaves_the_store_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def full(folder: Path) -> StageRecord:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StageError, match="disk is full") as caught:
        store.build(KEY, full)
    assert "optimize cache prune" in str(caught.value)
    assert list(store.entries()) == []


def test_two_builders_of_one_key_do_the_work_once(tmp_path: Path) -> None:
    built: list[int] = []
    said: list[str] = []

    def slow(folder: Path) -> StageRecord:
        built.append(1)
        time.sleep(0.3)
        return record(folder)

    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(Store(tmp_path, said.append).build(KEY, slow)[1]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert sorted(results) == [False, True]
    assert any("waiting for another build" in s for s in said)


def test_prune_drops_what_was_not_used_and_keeps_the_rest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stale, _ = store.build("1" * 64, record)
    store.build("2" * 64, record)
    past = time.time() - 40 * 86_400
    os.utime(stale.folder / RECORD, (past, past))
    count, size = store.prune(30)
    assert count == 1
    assert size > 0
    assert [e.name for e in store.entries()] == ["2" * 64]


def test_the_index_sees_a_changed_file_at_the_same_path(tmp_path: Path) -> None:
    index = ContentIndex(tmp_path)
    file = tmp_path / "picture.png"
    file.write_bytes(b"one")
    old(file)
    before = index.digests([file])[file]
    assert index.digests([file])[file] == before
    file.write_bytes(b"two")
    assert index.digests([file])[file] != before


def test_a_fresh_index_reads_again_what_kept_size_and_time(tmp_path: Path) -> None:
    index = ContentIndex(tmp_path)
    file = tmp_path / "picture.png"
    file.write_bytes(b"one")
    old(file)
    stat = file.stat()
    before = index.digests([file])[file]
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert index.digests([file])[file] == before
    assert index.fresh().digests([file])[file] != before


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    folder = Store(tmp_path).build(KEY, record)[0].folder
    document = json.loads((folder / RECORD).read_text())
    assert document["record"]["stage"] == "export"
    assert list(document["files"]) == ["model.onnx"]
