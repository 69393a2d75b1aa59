"""Threads that wait for one another spin on a quiet machine, and sleep beside other busy programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from optimizer.calibration import barriers
from optimizer.calibration.barriers import Barriers, all_threads, busy_seconds

# Operators with pauses: what is spent beyond the operators' work is spent waiting.
_PAUSES = """
import json, time, torch
from optimizer.calibration.barriers import Barriers
torch.set_num_threads(2)
found, x, wait = {}, torch.zeros(1 << 18), Barriers(2)
for name, short in (("spinning", False), ("sleeping", True), ("again", False)):
    wait.wait_shortly(short)
    x.add_(1)
    spent = time.process_time()
    for _ in range(60):
        x.add_(1)
        time.sleep(0.004)
    found[name] = time.process_time() - spent
    found[f"{name}, threads"] = torch.get_num_threads()
wait.wait_shortly(False)
print(json.dumps(found))
"""


def stat(path: Path, *cpus: tuple[int, ...]) -> None:
    """Write what the kernel says of each processor, in ticks."""
    lines = [f"cpu{n} {' '.join(map(str, ticks))} 0 0" for n, ticks in enumerate(cpus)]
    path.write_text("\n".join(["cpu  9 9 9 9 9 9 9 9 0 0", *lines, "intr 1"]), encoding="ascii")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two processors whose counters and clocks the test moves; nothing is started."""
    found = SimpleNamespace(wall=0.0, own=0.0, others=0.0, crowds=0)

    class Crowd:
        def __init__(self, threads: int) -> None:
            assert threads == 2
            found.crowds += 1

        def end(self) -> None:
            found.crowds -= 1

    monkeypatch.setattr(barriers, "_Crowd", Crowd)
    monkeypatch.setattr(barriers, "busy_seconds", lambda: found.own + found.others)
    clocks = SimpleNamespace(perf_counter=lambda: found.wall, process_time=lambda: found.own)
    monkeypatch.setattr("optimizer.calibration.barriers.time", clocks)
    return found


def pass_by(clock: SimpleNamespace, seconds: float, own: float, others: float) -> None:
    clock.wall += seconds
    clock.own += own * seconds
    clock.others += others * seconds


def test_busy_is_what_the_processors_of_this_process_did_and_the_host_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, disk, irq, softirq, stolen = (tick * n for n in (1, 2, 4, 100, 200, 8, 16, 32))
    one = (user, nice, system, idle, disk, irq, softirq, stolen)
    stat(tmp_path / "stat", one, (tick * 1000,) * 8, one)
    monkeypatch.setattr(barriers, "_STAT", tmp_path / "stat")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2})
    monkeypatch.setattr(barriers, "usable_cores", lambda: 2)
    assert busy_seconds() == 2 * (1 + 2 + 4 + 8 + 16 + 32)
    monkeypatch.setattr(barriers, "usable_cores", lambda: 1)  # a quota: who else uses the two is not known
    assert busy_seconds() is None


def test_where_the_system_does_not_say_nothing_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(barriers, "_STAT", tmp_path / "none")
    assert busy_seconds() is None
    wait = Barriers(2)
    wait.look()
    assert not wait.short


def test_waiting_is_short_while_others_are_busy_and_no_longer(clock: SimpleNamespace) -> None:
    wait = Barriers(2)
    found = []
    for others in (0.05, 1.0, 0.9, 0.05, 0.7):
        pass_by(clock, 1.0, 1.5, others)
        wait.look()
        found.append((wait.short, clock.crowds))
    assert found == [(False, 0), (True, 1), (True, 1), (False, 0), (True, 1)]


def test_what_this_process_spends_is_no_load(clock: SimpleNamespace) -> None:
    """The twin of others' load: both processors are busy with our own threads."""
    wait = Barriers(2)
    pass_by(clock, 1.0, 2.0, 0.0)
    wait.look()
    assert not wait.short


def test_the_machine_is_not_looked_at_too_often(clock: SimpleNamespace) -> None:
    wait = Barriers(2)
    for _ in wait.watching(range(3)):
        pass_by(clock, 0.05, 0.0, 2.0)
    assert not wait.short  # 0.15 s tell nothing
    for _ in wait.watching(range(3)):
        pass_by(clock, 0.05, 0.0, 2.0)
    assert wait.short


def test_one_thread_waits_for_nobody(clock: SimpleNamespace) -> None:
    wait = Barriers(1)
    pass_by(clock, 1.0, 0.0, 2.0)
    wait.look()
    assert not wait.short


def test_the_number_of_threads_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(barriers, "usable_cores", lambda: before + 1)
    with all_threads() as wait:
        assert torch.get_num_threads() == before + 1
        wait.wait_shortly(True)
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    assert not wait.short


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_team_that_cannot_be_gathered_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "zeros", refuse)
    wait = Barriers(2)
    asked = threading.Thread(target=wait.wait_shortly, args=(True,), daemon=True)
    asked.start()
    asked.join(10)
    assert not asked.is_alive()
    wait.wait_shortly(False)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="with one processor libgomp never spins")
@pytest.mark.skipif(
    "libgomp" not in Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else True,
    reason="this torch does not use libgomp",
)
def test_short_waiting_spends_less_of_the_processors_with_as_many_threads() -> None:
    spared = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    answer = subprocess.run([sys.executable, "-c", _PAUSES], env=spared, capture_output=True, check=True, timeout=120)
    found = json.loads(answer.stdout)
    assert {found[f"{name}, threads"] for name in ("spinning", "sleeping", "again")} == {2}
    assert found["sleeping"] < found["spinning"] / 2
    assert found["sleeping"] < found["again"] / 2
