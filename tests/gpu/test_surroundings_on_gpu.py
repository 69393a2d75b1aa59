"""NVML watched while measuring, on a real GPU. Skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest

from optimizer.environment import gpu, no_gpu
from optimizer.measure.surroundings import Watch

pytestmark = pytest.mark.gpu


def test_clocks_temperature_and_power_of_the_gpu_are_read() -> None:
    if gpu() is None:
        pytest.skip(no_gpu())
    with Watch(device="cuda:0") as watch:
        watch.round()
        facts = watch.facts()
    assert facts["gpu_unwatched"] is None
    assert facts["gpu"]["readings"] >= 1
    assert any(facts["gpu"][name] is not None for name in ("sm_mhz", "temperature_c", "power_w"))
    assert isinstance(facts["gpu"]["clock_reasons"], list)
