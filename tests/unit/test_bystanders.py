"""What others take of the processors is told from what a child of ours takes."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from optimizer.measure import bystanders
from optimizer.measure.bystanders import sentences, watched

BURN = "import time; end = time.process_time() + 0.4\nwhile time.process_time() < end: pass"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One processor that is all busy, in ticks of 10 ms."""
    state = SimpleNamespace(ticks=0)
    monkeypatch.setattr(bystanders, "ticks", lambda: {0: (state.ticks, 0, state.ticks)})
    return state


def test_a_busy_child_of_ours_is_no_disturbance_and_a_strangers_work_is(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(elapsed=0.0, user=0.0, system=0.0, children_user=0.0, children_system=0.0)
    monkeypatch.setattr("optimizer.measure.bystanders.os.times", lambda: clock)
    with watched([0]) as quiet:
        clock = SimpleNamespace(elapsed=1.0, user=0.1, system=0.0, children_user=0.9, children_system=0.0)
        machine.ticks = 100
    assert quiet.others_share == pytest.approx(0.0)
    assert quiet.said == ()
    with watched([0]) as noisy:
        clock = SimpleNamespace(elapsed=2.0, user=0.1, system=0.0, children_user=1.3, children_system=0.0)
        machine.ticks = 200
    assert noisy.said == ("others used 60% of the processors measured on",)


def test_a_child_that_ended_is_counted_as_ours() -> None:
    before = bystanders._spent()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert bystanders._spent() - before > 0.35


def test_what_the_system_does_not_tell_is_not_said() -> None:
    assert sentences(None, None) == ()
    assert sentences(0.01, 0.005) == ()
    assert sentences(0.5, 0.02) == (
        "others used 50% of the processors measured on",
        "the hypervisor took 2.0% of the processors' time",
    )
