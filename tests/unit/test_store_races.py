"""Several builds, prunes and finds at once over one store: nobody loses what is in use, nobody finds half of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from optimizer.filelock import locked
from optimizer.pipeline.plan import HISTORY, explain, read_history, write_history
from optimizer.recipe.sources import Source
from optimizer.store import RECORD, Entry, Store
from optimizer.types import Artifact, StageRecord

KEY = "ab" * 32
DAY = 86_400.0


def record(folder: Path, text: str = "hello") -> StageRecord:
    (folder / "model.onnx").write_text(text)
    return StageRecord("export", KEY, {"stage": "export"}, "", 1.5, 1000)


def text_of(entry: Entry | None) -> str:
    assert entry is not None
    return entry.artifact("onnx").file.read_text()


def age(path: Path, seconds: float) -> None:
    past = time.time() - seconds
    os.utime(path, (past, past))


def names(store: Store) -> list[str]:
    return [folder.name for folder in store.entries()]


# -- replacing


def test_who_reads_a_replaced_entry_goes_on_reading_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    reading, _ = store.build(KEY, record)
    new, reused = store.build(KEY, lambda f: record(f, "again"), replace=True)
    assert not reused
    assert text_of(reading) == "hello"
    assert text_of(new) == text_of(store.find(KEY)) == text_of(store.use(KEY)) == "again"
    assert text_of(store.build(KEY, lambda _: pytest.fail("built twice"))[0]) == "again"


def test_a_failed_replacement_leaves_the_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.build(KEY, record)
    with pytest.raises(KeyboardInterrupt):
        store.build(KEY, lambda _: (_ for _ in ()).throw(KeyboardInterrupt), replace=True)
    assert text_of(store.find(KEY)) == "hello"
    assert names(store) == [KEY]


def test_a_superseded_entry_goes_after_a_day(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.build(KEY, record)
    new, _ = store.build(KEY, lambda f: record(f, "again"), replace=True)
    store.prune(30)
    assert len(names(store)) == 2  # the twin: it may still be read
    age(new.folder, 2 * DAY)
    assert store.prune(30)[0] == 1
    assert names(store) == [new.folder.name]
    assert text_of(store.find(KEY)) == "again"


def test_replacing_often_does_not_fill_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for n in range(5):
        entry, _ = store.build(KEY, lambda f, n=n: record(f, str(n)), replace=True)  # type: ignore[misc]
        age(entry.folder, 2 * DAY)
    assert names(store) == [f"{KEY}.3", f"{KEY}.4"]


def test_a_superseded_entry_never_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.build(KEY, record)
    new, _ = store.build(KEY, lambda f: record(f, "again"), replace=True)
    new.artifact("onnx").file.write_text("spoilt")
    assert store.find(KEY) is None
    assert store.find(KEY) is None
    assert names(store) == []


def test_readers_beside_replacers_always_find_a_whole_entry(tmp_path: Path) -> None:
    """Another process replaces the entry over and over; every find meanwhile gives one that reads well."""
    said: list[str] = []
    store = Store(tmp_path, said.append)
    store.build(KEY, record)
    code = (
        "import sys; from pathlib import Path; from optimizer.store import Store; from tests.unit.test_store_races"
        " import KEY, record\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for n in range(60): store.build(KEY, lambda f: record(f, str(n)), replace=True)"
    )
    place = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=place) as other:
        finds = 0
        while other.poll() is None:
            text_of(store.find(KEY))
            finds += 1
    assert other.returncode == 0
    assert finds > 10
    assert text_of(store.find(KEY)) == "59"
    assert said == []


# -- vanishing and damage


def test_an_entry_that_vanishes_while_it_is_read_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    store = Store(tmp_path, said.append)
    entry, _ = store.build(KEY, record)
    real = store.index.digests

    def late(files: list[Path]) -> dict[Path, str]:
        if entry.folder.exists():
            entry.folder.rename(tmp_path / "elsewhere")  # as another process's prune does
        return real(files)

    monkeypatch.setattr(store.index, "digests", late)
    assert store.find(KEY) is None
    assert said == []


def test_a_finder_leaves_a_damaged_entry_to_who_holds_its_lock(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.build(KEY, record)[0].artifact("onnx").file.write_text("spoilt")
    with locked(tmp_path / "locks" / KEY):
        assert store.find(KEY) is None
        assert names(store) == [KEY]
    assert store.find(KEY) is None
    assert names(store) == []


def test_a_finder_does_not_drop_what_was_rebuilt_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    store.build(KEY, record)[0].artifact("onnx").file.write_text("spoilt")
    real = store._lock

    @contextmanager
    def late(key: str, *, wait: bool = True) -> Iterator[bool]:
        other.build(key, lambda f: record(f, "rebuilt"))  # between the first look and the lock
        with real(key, wait=wait) as held:
            yield held

    monkeypatch.setattr(store, "_lock", late)
    assert text_of(store.find(KEY)) == "rebuilt"


def test_many_finders_of_a_damaged_entry_do_not_collide(tmp_path: Path) -> None:
    Store(tmp_path).build(KEY, record)[0].artifact("onnx").file.write_text("spoilt")
    said: list[str] = []
    problems: list[BaseException] = []
    stores = [Store(tmp_path, said.append) for _ in range(8)]

    def look(store: Store) -> None:
        try:
            assert store.find(KEY) is None
        except BaseException as error:
            problems.append(error)

    run_together([lambda s=s: look(s) for s in stores])
    assert problems == []
    assert len([s for s in said if "damaged" in s]) == 1


def run_together(works: list[Any]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- pruning


def test_prune_leaves_what_is_being_built(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def long(folder: Path) -> StageRecord:
        for place in (tmp_path / "tmp").iterdir():
            age(place, 5 * 3600)
        Store(tmp_path).prune(0)
        return record(folder)

    assert text_of(store.build(KEY, long)[0]) == "hello"


def test_prune_clears_what_a_killed_build_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = tmp_path / "tmp" / "left"
    (left / "entry").mkdir(parents=True)
    (left / "entry" / "half.onnx").write_text("half")
    (left / "lock").touch()
    assert store.prune(30) == (0, 0)  # the twin: a build that began this moment
    age(left, 120)
    assert store.prune(30) == (1, 4)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_prune_leaves_an_entry_whose_lock_is_held(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry, _ = store.build(KEY, record)
    age(entry.folder / RECORD, 40 * DAY)
    with locked(tmp_path / "locks" / KEY):
        assert store.prune(30)[0] == 0
    assert store.prune(30)[0] == 1


def test_an_entry_in_use_is_not_pruned(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry, _ = store.build(KEY, record)
    for use in (lambda: store.use(KEY), lambda: store.build(KEY, record)):
        age(entry.folder / RECORD, 40 * DAY)
        use()
        assert store.prune(30)[0] == 0
    age(entry.folder / RECORD, 40 * DAY)
    store.find(KEY)  # the twin: a plan only looks
    assert store.prune(30)[0] == 1


def test_prune_removes_the_locks_of_what_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.build(KEY, record)
    with locked(tmp_path / "locks" / ("1" * 64)), ExitStack() as stack:
        stack.enter_context(locked(tmp_path / "locks" / ("2" * 64)))
        stack.close()
        store.prune(30)
        assert {p.name for p in (tmp_path / "locks").iterdir()} == {KEY, "1" * 64}


def test_who_waited_for_a_lock_file_that_was_removed_takes_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[int] = []
    most: list[int] = []

    def hold() -> None:
        for _ in range(30):
            with locked(path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                path.unlink()  # last of all, as prune does

    run_together([hold] * 4)
    assert max(most) == 1
    assert len(most) == 120


# -- history


def source(text: str) -> Source:
    return cast("Source", SimpleNamespace(artifact=Artifact("data", Path(), text), document={"files": {text: text}}))


def step(digest: str, **changes: Any) -> dict[str, Any]:
    common = {"version": 1, "optimizer": "1", "device": None, "checks": [], "key_schema": 1}
    return {"tools": {}, "parameters": {}, "sources": {"data": digest}, **common, **changes}


def test_builds_that_end_at_once_write_one_whole_history(tmp_path: Path) -> None:
    problems: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(30):
                write_history(tmp_path, {"export": step("a")}, {"data": source("a")})
        except BaseException as error:
            problems.append(error)

    run_together([write] * 4)
    assert problems == []
    assert set(read_history(tmp_path).steps) == {"export"}
    assert [p.name for p in tmp_path.iterdir()] == [HISTORY]


def test_a_partial_build_keeps_the_history_of_the_rest(tmp_path: Path) -> None:
    write_history(tmp_path, {"export": step("a"), "int8": step("b")}, {"data": source("a"), "more": source("b")})
    write_history(tmp_path, {"export": step("c")}, {"data": source("c"), "more": source("d")})
    history = read_history(tmp_path)
    assert history.steps["export"]["sources"] == {"data": "c"}
    assert set(history.documents) == {"b", "c"}  # those that some step was built from
    now = explain(history.steps["int8"], step("d"), {"data": source("d")}, history.documents)
    assert now == "data changed (b removed; d added)"


@pytest.mark.parametrize(
    "content", ["[]", "3", "{", '{"steps": []}', '{"steps": {"export": {}}}', '{"steps": {"export": {"tools": 1}}}']
)
def test_a_history_of_another_shape_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / HISTORY).write_text(content)
    steps: Mapping[str, Any] = read_history(tmp_path).steps
    assert steps == {}
    write_history(tmp_path, {"export": step("a")}, {"data": source("a")})
    assert set(json.loads((tmp_path / HISTORY).read_text())["steps"]) == {"export"}
