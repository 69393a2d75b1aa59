"""What disturbed a round, from counters whose growth is known; and that the real ones are read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optimizer.measure import affinity, surroundings
from optimizer.measure.gpu_watch import GpuWatch, held_down, named
from optimizer.measure.observed import complaints, together
from optimizer.measure.surroundings import Reading, Watch, disturbances

MS = 1_000_000
schedstat = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel has no schedstat")


def reading(wall: float, *threads: tuple[float, float], throttled: float | None = 0) -> Reading:
    """Milliseconds; each thread's are those it ran and waited."""
    times = {n: (round(ran * MS), round(waited * MS)) for n, (ran, waited) in enumerate(threads)}
    return Reading(round(wall * MS), times, None if throttled is None else round(throttled * MS))


START = reading(0, (0, 0), (0, 0))


@pytest.mark.parametrize(
    ("after", "processors", "said"),
    [
        (reading(10, (10, 0), (0, 0)), 1, ()),
        (reading(10, (9.85, 0.15), (0, 0)), 1, ()),  # 1.5 %
        (reading(10, (9.5, 0.5), (0, 0)), 1, ("waited for a processor",)),
        (reading(10, (5, 5), (0, 0)), 1, ("waited for a processor",)),
        (reading(1, (0.95, 0.05), (0, 0)), 1, ()),  # 5 % of next to nothing
        # Two threads of ours on one processor wait for each other: it is ours all the time.
        (reading(10, (5, 5), (5, 5)), 1, ()),
        (reading(10, (4, 5), (4, 5)), 1, ("waited for a processor",)),  # and somebody else had the rest
        (reading(10, (10, 0), (9.5, 0.5)), 2, ("waited for a processor",)),
        (reading(10, (10, 0), (2, 0)), 2, ()),  # idle is no waiting
        (reading(10, (10, 0), (0, 0), throttled=3), 1, ("throttled by the cgroup's limit",)),
        (reading(10, (10, 0), (0, 0), throttled=None), 1, ()),
    ],
)
def test_a_round_is_disturbed_by_waiting_for_others_and_by_throttling(
    after: Reading, processors: int, said: tuple[str, ...]
) -> None:
    assert disturbances(START, after, processors) == said


def test_where_the_system_tells_nothing_nothing_is_claimed() -> None:
    assert disturbances(Reading(0, None, None), Reading(10 * MS, None, None), 1) == ()


def test_a_thread_that_began_or_ended_meanwhile_does_not_confuse_the_sum() -> None:
    before = Reading(0, {1: (500 * MS, 0), 2: (900 * MS, 70 * MS)}, 0)
    after = Reading(10 * MS, {1: (510 * MS, 0), 3: (0, 0)}, 0)
    assert disturbances(before, after, 1) == ()


@schedstat
def test_waiting_for_a_processor_that_another_process_holds_is_seen() -> None:
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    os.sched_setaffinity(0, {one})
    # It inherits the processor.
    with subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as other:
        try:
            assert other.stdout
            other.stdout.readline()
            with Watch((one,)) as watch:
                until = time.perf_counter() + 0.3
                while time.perf_counter() < until:
                    pass
                assert watch.round() == ("waited for a processor",)
                facts = watch.facts()
        finally:
            other.kill()
            os.sched_setaffinity(0, allowed)
    assert facts["waited_share"] > 0.1
    assert facts["others_share"] > 0.1
    assert facts["complaints"][0] == "waited for a processor in 1 of 1 rounds"


def test_facts_are_json_and_begin_starts_anew() -> None:
    import json

    with Watch() as watch:
        watch.round()
        watch.round()
        assert watch.facts()["rounds"] == 2
        watch.begin()
        facts = watch.facts()
    assert facts["rounds"] == 0
    assert json.loads(json.dumps(facts)) == facts
    assert facts["gpu"] is None


def test_files_are_closed_again() -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    with Watch() as watch:
        watch.round()
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    assert after == before


def cgroup(monkeypatch: pytest.MonkeyPatch, folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    monkeypatch.setattr(surroundings, "cgroups", lambda _: [folder])


def test_throttling_is_read_from_both_versions_of_cgroups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cgroup(
        monkeypatch, tmp_path, cpu__stat="usage_usec 9\nnr_throttled 2\nthrottled_usec 1500\n", cpu__max="150000 100000"
    )
    assert surroundings._throttled_ns(surroundings._throttle_file()) == 1_500_000
    assert surroundings._cpu_limit() == 1.5
    (tmp_path / "cpu.max").write_text("max 100000")
    assert surroundings._cpu_limit() is None
    (tmp_path / "cpu.stat").write_text("nr_periods 3\nnr_throttled 2\nthrottled_time 1500000\n")
    assert surroundings._throttled_ns(surroundings._throttle_file()) == 1_500_000


def test_load_of_others_and_stolen_time_are_those_of_the_pinned_processors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(surroundings, "_STAT", stat)
    stat.write_text("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 0 900 0 0 0 0 0 0\ncpu1 10 0 0 90 0 0 0 0 0 0\n")
    before = surroundings.ticks()
    stat.write_text("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 900 0 0 900 0 0 0 0 0 0\ncpu1 50 5 5 130 0 0 0 10 0 0\n")
    after = surroundings.ticks()
    assert surroundings.shares((1,), before, after) == (0.5, 0.1)
    assert surroundings.shares((0, 1), before, after) == pytest.approx((0.944, 0.011), abs=0.001)
    assert surroundings.shares((1,), before, before) == surroundings.shares((7,), before, after) == (None, None)


def test_a_busy_processor_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([{0: (0, 0, 0), 1: (0, 0, 0)}, {0: (9, 0, 10), 1: (2, 0, 10)}])
    monkeypatch.setattr(affinity, "ticks", lambda: next(seen))
    assert affinity._busy({0, 1}) == {0}


def test_clocks_and_governor_are_read_where_there_are_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "cpu1" / "cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_governor").write_text("powersave\n")
    (folder / "scaling_cur_freq").write_text("2400000\n")
    monkeypatch.setattr(surroundings, "_CPUS", tmp_path)
    with Watch((1,)) as watch:
        facts = watch.facts()
    assert (facts["governor"], facts["mhz"]) == ("powersave", [2400.0, 2400.0])


def test_complaints_are_sentences_with_how_much() -> None:
    facts: dict[str, Any] = {
        "disturbed_rounds": {"waited for a processor": 3},
        "rounds": 40,
        "stolen_share": 0.04,
        "others_share": 0.3,
        "gpu_unwatched": None,
        "gpu": {"other_processes": 2},
    }
    assert complaints(facts) == [
        "waited for a processor in 3 of 40 rounds",
        "the hypervisor took 4.0% of the processors' time",
        "others used 30% of the processors measured on",
        "2 other processes compute on the GPU",
    ]
    quiet = {"disturbed_rounds": {}, "rounds": 40, "stolen_share": 0.0, "others_share": None, "gpu": None}
    assert complaints(quiet | {"gpu_unwatched": None}) == []


def test_several_stretches_are_told_as_one() -> None:
    with Watch() as watch:
        one = watch.facts() | {
            "seconds": 1.0,
            "rounds": 10,
            "disturbed_rounds": {"waited for a processor": 2},
            "waited_share": 0.1,
            "others_share": None,
            "stolen_share": 0.0,
            "throttled_ms": 3.0,
            "mhz": [2000.0, 2400.0],
        }
    other = one | {"seconds": 3.0, "disturbed_rounds": {}, "waited_share": 0.02, "mhz": None, "stolen_share": 0.04}
    found = together([one, other])
    assert (found["rounds"], found["seconds"], found["throttled_ms"]) == (20, 4.0, 6.0)
    assert found["waited_share"] == pytest.approx(0.04)
    assert found["mhz"] == [2000.0, 2400.0]
    assert found["others_share"] is None
    assert found["complaints"] == [
        "waited for a processor in 2 of 20 rounds",
        "the hypervisor took 3.0% of the processors' time",
    ]
    assert len(found["stretches"]) == 2


class NvmlError(Exception):
    pass


class FakeNvml:
    """NVML of one GPU; what is set to None is not supported there."""

    NVMLError = NvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, **values: Any) -> None:
        self.values = {
            "sm": 1980,
            "mem": 2619,
            "temperature": 41,
            "power": 310_500,
            "reasons": 0,
            "pids": (7,),
        } | values

    def _get(self, name: str) -> Any:
        if self.values[name] is None:
            raise NvmlError("Not Supported")
        return self.values[name]

    def nvmlDeviceGetClockInfo(self, _: Any, which: int) -> int:  # noqa: N802
        return int(self._get("sm" if which == self.NVML_CLOCK_SM else "mem"))

    def nvmlDeviceGetTemperature(self, _: Any, sensor: int) -> int:  # noqa: N802
        return int(self._get("temperature"))

    def nvmlDeviceGetPowerUsage(self, _: Any) -> int:  # noqa: N802
        return int(self._get("power"))

    def nvmlDeviceGetCurrentClocksEventReasons(self, _: Any) -> int:  # noqa: N802
        return int(self._get("reasons"))

    def nvmlDeviceGetComputeRunningProcesses(self, _: Any) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self._get("pids")]


def test_the_state_of_a_gpu_is_summed_up_in_ranges() -> None:
    nvml = FakeNvml()
    watch = GpuWatch(nvml, "gpu")
    watch.read()
    nvml.values |= {"sm": 1400, "reasons": 0x40 | 0x04}
    watch.read()
    said = watch.summary()
    assert (said["sm_mhz"], said["power_w"], said["readings"]) == ([1400, 1980], [310.5, 310.5], 2)
    assert said["clock_reasons"] == ["hardware thermal slowdown", "software power cap"]
    assert said["other_processes"] == 0
    watch.clear()
    assert watch.summary()["sm_mhz"] is None


def test_what_a_gpu_does_not_tell_is_null() -> None:
    said = GpuWatch(FakeNvml(power=None, sm=None, pids=None), "gpu")
    state = said.read()
    assert (state.sm_mhz, state.power_w, state.temperature_c) == (None, None, 41)
    assert said.summary()["other_processes"] is None


def test_clock_reasons_that_cannot_be_read_are_null_and_none_that_are_seen_an_empty_list() -> None:
    nvml = FakeNvml(reasons=None)
    watch = GpuWatch(nvml, "gpu")
    assert held_down(watch.read().reasons) == []
    assert watch.summary()["clock_reasons"] is None
    nvml.values["reasons"] = 0
    watch.read()
    assert watch.summary()["clock_reasons"] == []
    nvml.values["reasons"] = 0x04
    watch.read()
    assert watch.summary()["clock_reasons"] == ["software power cap"]
    watch.clear()
    assert watch.summary()["clock_reasons"] is None


def test_clocks_that_nobody_tells_disturb_no_round() -> None:
    with Watch() as watch:
        watch._gpu = GpuWatch(FakeNvml(reasons=None), "gpu")
        watch.begin()
        assert not [said for said in watch.round() if said.startswith("GPU")]
        assert watch.facts()["gpu"]["clock_reasons"] is None


def test_heat_disturbs_and_the_models_own_power_does_not() -> None:
    assert held_down(0x20) == ["software thermal slowdown"]
    assert held_down(0x04 | 0x01) == []
    assert named(0x04) == ["software power cap"]


def test_a_gpu_that_is_held_down_marks_the_round() -> None:
    with Watch() as watch:
        watch._gpu = GpuWatch(FakeNvml(reasons=0x08, pids=(3, 4)), "gpu")
        watch.begin()
        assert "GPU: hardware slowdown" in watch.round()
        facts = watch.facts()
    assert facts["gpu"]["other_processes"] == 1
    assert "1 other processes compute on the GPU" in facts["complaints"]


def test_a_gpu_that_cannot_be_watched_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer.errors import MissingToolError

    def absent(device: str) -> Any:
        raise MissingToolError("this machine has no NVIDIA GPU", where=f"device {device}")

    monkeypatch.setattr(surroundings, "opened", absent)
    with Watch(device="cuda:0") as watch:
        facts = watch.facts()
    assert "the GPU was not watched: device cuda:0: this machine has no NVIDIA GPU" in facts["complaints"]
