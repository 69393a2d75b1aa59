"""Joules from counters that wrap, stand still, forbid reading or are absent; time itself is real and short."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from optimizer.errors import MeasurementError
from optimizer.measure import nvml as nvml_module
from optimizer.measure.energy import Energy, NvmlPower, Rapl, Source, energy_mj_per_item, opened_source

WATTS = 50.0
BUSY_S = 0.002


def busy() -> None:
    time.sleep(BUSY_S)


def zone(root: Path, number: str, name: str, *, uj: int = 0, span: int = 10**9) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    (folder / "energy_uj").write_text(f"{uj}\n")
    return folder


class Nvml:
    """A GPU that draws 50 W; its counter moves every `tick_s`."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, tick_s: float = 0.0, counts: bool = True, powers: bool = True, still: bool = False) -> None:
        self.tick_s, self.counts, self.powers, self.still = tick_s, counts, powers, still
        self.begun = time.perf_counter()

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
        if not self.counts:
            raise self.NVMLError("Not Supported")
        now = 0.0 if self.still else time.perf_counter() - self.begun
        if self.tick_s:
            now = now // self.tick_s * self.tick_s
        return 10**9 + round(1000 * WATTS * now)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        if not self.powers:
            raise self.NVMLError("Not Supported")
        return round(1000 * WATTS)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Nvml], None]:
    def use(fake: Nvml) -> None:
        monkeypatch.setattr(nvml_module, "opened", lambda device: contextlib.nullcontext((fake, 0)))

    return use


def test_energy_per_item_is_what_the_counter_says(gpu: Any) -> None:
    gpu(Nvml())
    found = energy_mj_per_item(busy, 4, 0.3, device="cuda:0", idle_s=0.1)
    assert (found.source, found.reason) == ("NVML energy counter", None)
    assert found.mj_per_item is not None
    assert found.joules is not None
    assert found.items is not None
    assert found.seconds is not None
    assert found.mj_per_item == pytest.approx(1000 * WATTS * found.seconds / found.items, rel=0.02)
    assert found.mean_w == pytest.approx(WATTS, rel=0.02)
    assert found.idle_w == pytest.approx(WATTS, rel=0.02)  # stated, and not taken off
    assert found.items % 4 == 0
    assert found.to_json()["mj_per_item"] == found.mj_per_item


def test_a_slow_counter_is_read_where_it_moves(gpu: Any) -> None:
    """It moves every 100 ms; over 0.3 s an unaligned stretch would be wrong by up to a third."""
    gpu(Nvml(tick_s=0.1))
    found = energy_mj_per_item(busy, 1, 0.3, device="cuda:0", idle_s=0.0)
    assert found.mean_w == pytest.approx(WATTS, rel=0.1)
    assert found.idle_w is None


def test_a_counter_that_stands_still_gives_no_number(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.measure.energy.STANDSTILL_S", 0.1)
    gpu(Nvml(still=True))
    found = energy_mj_per_item(busy, 1, 0.1, device="cuda:0", idle_s=0.0)
    assert (found.mj_per_item, found.reason) == (None, "NVML energy counter stands still while calls run")


def test_without_a_counter_power_is_integrated(gpu: Any) -> None:
    gpu(Nvml(counts=False))
    found = energy_mj_per_item(busy, 1, 0.2, device="cuda:0", idle_s=0.0)
    assert found.source == "NVML power, sampled every 20 ms"
    assert found.mean_w == pytest.approx(WATTS, rel=0.05)


def test_power_that_changes_is_integrated_by_trapezoids(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ramp from 0 to 100 W over a second on a clock of our own: 50 J, whichever samples are taken."""
    clock = [0.0]

    class Ramp(Nvml):
        def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
            return round(100_000 * clock[0])

    monkeypatch.setattr("optimizer.measure.energy.SAMPLE_S", 60.0)
    monkeypatch.setattr("optimizer.measure.energy.time.perf_counter", lambda: clock[0])
    power = NvmlPower(Ramp(), 0)
    for clock[0] in (0.1, 0.5, 1.0):
        joules = power.read_j()
    power.close()
    assert joules == pytest.approx(50.0)


def test_a_gpu_that_tells_nothing_gives_the_reason(gpu: Any) -> None:
    gpu(Nvml(counts=False, powers=False))
    found = energy_mj_per_item(busy, 1, 0.1, device="cuda:0")
    assert (found.mj_per_item, found.joules, found.source) == (None, None, None)
    assert found.reason == "NVML tells neither energy nor power of this GPU: Not Supported"


def test_without_nvml_the_reason_is_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = energy_mj_per_item(busy, 1, 0.1, device="cuda:0")
    assert found.reason == "needs nvidia-ml-py, which is not installed"


def test_packages_are_summed_and_their_parts_left_out(tmp_path: Path) -> None:
    """The cores and the memory of a package are zones too, some inside it: counting them would count twice."""
    first, second = zone(tmp_path, "0", "package-0", uj=5), zone(tmp_path, "1", "package-1", uj=7)
    zone(tmp_path, "0:0", "core")
    zone(tmp_path, "2", "psys")
    with opened_source("cpu", tmp_path) as source:
        assert not isinstance(source, str)
        (first / "energy_uj").write_text(str(5 + 3_000_000))
        (second / "energy_uj").write_text(str(7 + 4_000_000))
        (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("9000000")
        assert (source.read_j(), source.name) == (pytest.approx(7.0), "RAPL, processor packages")


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", uj=990_000_000, span=1_000_000_000)
    rapl = Rapl((package,))
    (package / "energy_uj").write_text("20000000")
    assert rapl.read_j() == pytest.approx(30.0)
    (package / "energy_uj").write_text("25000000")
    assert rapl.read_j() == pytest.approx(35.0)


def test_a_stretch_in_which_it_may_wrap_twice_has_no_number(tmp_path: Path) -> None:
    def measured(span_uj: int) -> Energy:
        root = tmp_path / str(span_uj)
        counter = zone(root, "0", "package-0", span=span_uj) / "energy_uj"

        def call() -> None:
            time.sleep(0.08)
            counter.write_text(str((int(counter.read_text()) + 1_000_000) % span_uj))

        return energy_mj_per_item(call, 1, 0.1, powercap=root, idle_s=0.0)

    short = measured(50_000_000)  # 50 J: 50 ms at 1000 W, and a call takes 80
    assert short.mj_per_item is None
    assert short.reason is not None
    assert short.reason.startswith("RAPL, processor packages may wrap around twice in 0.")
    assert measured(50_000_000_000).mj_per_item == pytest.approx(1000.0)  # the twin: 50 s


def test_a_machine_without_rapl_says_so(tmp_path: Path) -> None:
    found = energy_mj_per_item(busy, 1, 0.1, powercap=tmp_path)
    assert found.reason == (
        f"this machine shows no RAPL counter under {tmp_path}: a virtual machine, or no such processor"
    )


def test_a_counter_that_only_root_reads_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = zone(tmp_path, "0", "package-0")
    read = Path.read_text

    def guarded(self: Path, *arguments: Any, **options: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", guarded)
    with opened_source("cpu", tmp_path) as found:
        assert found == (
            f"{package}/energy_uj is not readable: since Linux 5.10 only root may (CVE-2020-8694). "
            f"As root: chmod a+r {tmp_path}/intel-rapl:*/energy_uj"
        )


def test_the_names_used_are_those_of_the_real_bindings() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    used = [
        "NVMLError", "nvmlInit", "nvmlShutdown", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetHandleByIndex",
    ]  # fmt: skip
    assert [name for name in used if not hasattr(pynvml, name)] == []


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """pynvml with a driver, and how often it was opened and closed."""
    module: Any = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.counts = {"init": 0, "shutdown": 0}
    module.nvmlInit = lambda: module.counts.update(init=module.counts["init"] + 1)
    module.nvmlShutdown = lambda: module.counts.update(shutdown=module.counts["shutdown"] + 1)
    module.nvmlDeviceGetHandleByIndex = lambda index: f"gpu {index}"
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return module


def test_nvml_is_closed_again_whatever_happens(bindings: Any) -> None:
    with nvml_module.opened("cuda:1") as (module, handle):
        assert (module, handle) == (bindings, "gpu 1")
    with pytest.raises(RuntimeError, match="inside"), nvml_module.opened("cuda:0"):
        raise RuntimeError("inside")
    assert bindings.counts == {"init": 2, "shutdown": 2}


@pytest.mark.parametrize(("counts", "name"), [(True, "NVML energy counter"), (False, "NVML power")])
def test_a_gpu_that_is_lost_while_measured_is_a_measurement_error(gpu: Any, counts: bool, name: str) -> None:
    fake = Nvml(counts=counts)
    gpu(fake)
    calls = []

    def call() -> None:
        busy()
        calls.append(1)
        fake.counts = fake.powers = len(calls) < 5

    with pytest.raises(MeasurementError, match=rf"^measure\.resources: {name}.*: it cannot be read any more: Not Supp"):
        energy_mj_per_item(call, 1, 0.3, device="cuda:0", idle_s=0.0)


def test_a_sample_that_the_thread_missed_is_not_bridged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that fails once leaves a gap of unknown power: no number, although NVML answers again."""
    monkeypatch.setattr("optimizer.measure.energy.SAMPLE_S", 0.001)
    fake = Nvml()
    power = NvmlPower(fake, 0)
    assert power.read_j() >= 0.0
    fake.powers = False
    deadline = time.perf_counter() + 5
    while power._gap is None and time.perf_counter() < deadline:
        time.sleep(0.001)
    fake.powers = True
    try:
        with pytest.raises(MeasurementError, match="cannot be read any more: Not Supported"):
            power.read_j()
    finally:
        power.close()


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("")])
def test_a_processors_counter_that_is_lost_is_a_measurement_error(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    package = zone(tmp_path, "0", "package-0")
    source: Source = Rapl((package,))
    assert source.read_j() == 0.0
    damage(package / "energy_uj")
    with pytest.raises(MeasurementError, match=r"^measure\.resources: RAPL, processor packages: it cannot"):
        source.read_j()
