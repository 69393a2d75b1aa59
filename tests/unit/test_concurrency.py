"""Several runners at once: what they do together is summed, what disturbs them is said, and no failure hangs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_runners import ScriptedRunner, onnx_runner

from optimizer.errors import MeasurementError, UsageError
from optimizer.measure import concurrency, surroundings
from optimizer.measure.concurrency import measure_concurrency
from optimizer.measure.surroundings import Watch
from optimizer.runner import Runner
from optimizer.runtime.session import Array, Feed, Session


def feed_of(batch: int) -> Feed:
    return {"x": np.ones((batch, 16), np.float32)}


def test_runners_at_once_share_the_threads(tmp_path: Path) -> None:
    asked: list[int] = []

    def open_runner(threads: int) -> Runner:
        asked.append(threads)
        return onnx_runner(tmp_path)

    onnx_runner(tmp_path)
    one, two = measure_concurrency(open_runner, feed_of(2), (1, 2), threads=2, seconds=0.2)
    assert (one.workers, one.threads, two.workers, two.threads) == (1, 2, 2, 1)
    assert asked[1:4] == [2, 1, 1]  # after the probe, a runner of two threads, then two of one
    assert one.batch == 2
    assert one.calls > 10
    low, high = two.passes_items_per_second
    assert low <= two.items_per_second <= high
    assert one.p50_ms <= one.p90_ms <= one.p99_ms


def test_two_that_sleep_do_twice_as_much() -> None:
    """5 ms of sleep a call: throughput doubles with two at once and latency stays; the numbers are those of sums.

    The best of four passes, because neighbours may take the processor from the others.
    """
    one, two = measure_concurrency(
        lambda threads: ScriptedRunner(seconds=0.005), feed_of(1), (1, 2), threads=2, seconds=0.4
    )
    best, twice = one.passes_items_per_second[1], two.passes_items_per_second[1]
    assert twice == pytest.approx(2 * best, rel=0.35)
    assert 100 < best <= 200
    assert two.p50_ms < 1.5 * one.p50_ms  # one after the other it would be 2


class Placed(ScriptedRunner):
    """Notes the thread that calls it."""

    def __init__(self, threads: list[int]) -> None:
        super().__init__(seconds=0.001)
        self._called = threads

    def open(self) -> Session:
        session, called = super().open(), self._called

        class Noting(Session):
            def infer(self, feed: Feed) -> dict[str, Array]:
                called.append(threading.get_ident())
                return session.infer(feed)

            def bind(self, feed: Feed) -> Callable[[], None]:
                return lambda: self.infer(feed) and None

        return Noting()


def test_one_runner_by_itself_is_called_where_latency_is_timed() -> None:
    """OpenMP keeps threads for each thread that calls: in a new one PyTorch would run in another mode."""
    alone: list[int] = []
    measure_concurrency(lambda threads: Placed(alone), feed_of(1), (1,), threads=2, seconds=0.05)
    assert set(alone) == {threading.get_ident()}
    both: list[int] = []
    measure_concurrency(lambda threads: Placed(both), feed_of(1), (2,), threads=2, seconds=0.05)
    assert threading.get_ident() in both
    assert len(set(both)) > 1


def test_passes_that_were_disturbed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(reason: tuple[str, ...]) -> tuple[str, ...]:
        monkeypatch.setattr(surroundings, "disturbances", lambda *_: reason)
        (load,) = measure_concurrency(
            lambda threads: ScriptedRunner(seconds=0.001), feed_of(1), (1,), threads=1, seconds=0.05
        )
        return tuple(load.to_json()["disturbed"])

    assert found(("waited for a processor",)) == ("waited for a processor in 4 of 4 passes",)
    assert found(()) == ()


class HotNvml:
    """NVML of a GPU that heat holds down, and that tells nothing else."""

    NVMLError = KeyError
    NVML_CLOCK_SM = NVML_CLOCK_MEM = 0

    def nvmlDeviceGetCurrentClocksEventReasons(self, _: Any) -> int:  # noqa: N802
        return 0x40

    def __getattr__(self, name: str) -> Any:
        def unsupported(*_: Any) -> Any:
            raise KeyError(name)

        return unsupported


@pytest.mark.parametrize(
    ("device", "said"), [("cuda:1", ("GPU: hardware thermal slowdown in 4 of 4 passes",)), ("cpu", ())]
)
def test_a_gpu_held_down_while_several_run_at_once_is_said(
    monkeypatch: pytest.MonkeyPatch, device: str, said: tuple[str, ...]
) -> None:
    asked = []

    def opened(device: str) -> Any:
        asked.append(device)
        return contextlib.nullcontext((HotNvml(), None))

    def open_runner(threads: int) -> Runner:
        made = ScriptedRunner(seconds=0.001)
        made.device = device
        return made

    monkeypatch.setattr(surroundings, "opened", opened)
    monkeypatch.setattr(surroundings, "disturbances", lambda *_: ())
    (load,) = measure_concurrency(open_runner, feed_of(1), (2,), threads=2, seconds=0.05)
    assert load.disturbed == said
    assert asked == [device] * len(said)


def test_levels_leave_no_file_of_a_thread_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass has new threads; what the watch holds at the end is of those that live."""
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this kernel has no schedstat")
    watches: list[int] = []

    class Counted(Watch):
        def begin(self) -> None:
            super().begin()
            watches.append(len(self._files))

    monkeypatch.setattr(concurrency, "Watch", Counted)
    measure_concurrency(lambda threads: ScriptedRunner(seconds=0.001), feed_of(1), (1, 16), threads=16, seconds=0.08)
    assert max(watches) < watches[0] + 30  # a pass has 15 threads more, the four of 16 at once 60


def test_a_worker_that_fails_leaves_nobody_waiting() -> None:
    begun = time.monotonic()
    with pytest.raises(MeasurementError) as caught:
        measure_concurrency(
            lambda threads: ScriptedRunner(seconds=0.001, fails_at=3), feed_of(1), (2,), threads=2, seconds=0.2
        )
    assert caught.value.render() == "scripted on cpu, 2 at once: failed: no kernel for this sample"
    assert time.monotonic() - begun < 10


def test_more_workers_than_threads_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        measure_concurrency(lambda threads: ScriptedRunner(), feed_of(1), (1, 4), threads=2, seconds=0.1)
    assert caught.value.render() == (
        "measure.concurrency: 4 workers on 2 threads would wait for each other\n  threads: 4   or at most 2 workers"
    )
