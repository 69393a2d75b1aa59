"""The state of a GPU while measuring, as NVML tells it: clocks and what holds them down, temperature, power, others."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Source: NVML API reference, nvmlClocksEventReasons. Bits that mean: slower than this GPU is by itself.
HELD_DOWN = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
# Bits that the model's own work or the owner's settings bring about: shown, no disturbance.
SHOWN = {0x02: "application clocks setting", 0x04: "software power cap", 0x10: "sync boost", 0x100: "display clocks"}


@dataclass(frozen=True, slots=True)
class GpuState:
    """One reading; None where this GPU or driver does not tell.

    Units: MHz, degrees Celsius, watts. `reasons` is NVML's bit mask of clock event reasons.
    """

    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    reasons: int | None


@dataclass(slots=True)
class GpuWatch:
    """Reads one GPU through an initialised NVML; `nvml` is the pynvml module, `handle` the device."""

    nvml: Any
    handle: Any
    states: list[GpuState] = field(default_factory=list)

    def read(self) -> GpuState:
        """Read the state and keep it for the summary."""
        n = self.nvml
        power = self._ask(n.nvmlDeviceGetPowerUsage)
        state = GpuState(
            sm_mhz=self._ask(n.nvmlDeviceGetClockInfo, n.NVML_CLOCK_SM),
            memory_mhz=self._ask(n.nvmlDeviceGetClockInfo, n.NVML_CLOCK_MEM),
            temperature_c=self._ask(n.nvmlDeviceGetTemperature, n.NVML_TEMPERATURE_GPU),
            power_w=None if power is None else power / 1000,
            reasons=self._ask(n.nvmlDeviceGetCurrentClocksEventReasons),
        )
        self.states.append(state)
        return state

    def other_processes(self) -> int | None:
        """Count the other processes that compute on this GPU.

        Numbers of processes are those of the host: inside a container none of them may be ours, so one is taken off
        because this process holds a context, whichever number it has.
        """
        found = self._ask(self.nvml.nvmlDeviceGetComputeRunningProcesses)
        return None if found is None else max(0, len({p.pid for p in found}) - 1)

    def summary(self) -> dict[str, Any]:
        """Return ranges over all readings since the last `clear`, and every reason that was seen."""
        told = [state.reasons for state in self.states if state.reasons is not None]
        return {
            "readings": len(self.states),
            "sm_mhz": self._range("sm_mhz"),
            "memory_mhz": self._range("memory_mhz"),
            "temperature_c": self._range("temperature_c"),
            "power_w": self._range("power_w"),
            "clock_reasons": named(functools.reduce(operator.or_, told)) if told else None,
            "other_processes": self.other_processes(),
        }

    def clear(self) -> None:
        """Forget the readings."""
        self.states.clear()

    def _range(self, name: str) -> list[float] | None:
        values = [value for state in self.states if (value := getattr(state, name)) is not None]
        return [min(values), max(values)] if values else None

    def _ask(self, query: Callable[..., Any], *arguments: Any) -> Any:
        """Ask; None where this GPU does not answer (a MIG slice has no clocks of its own, say)."""
        try:
            return query(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None


def named(reasons: int) -> list[str]:
    """Return the names of the bits that are set."""
    return [name for bit, name in (HELD_DOWN | SHOWN).items() if reasons & bit]


def held_down(reasons: int | None) -> list[str]:
    """Return the names of those bits that mean a disturbance: heat, or power that the board cannot give."""
    return [name for bit, name in HELD_DOWN.items() if (reasons or 0) & bit]
