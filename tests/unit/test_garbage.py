"""The garbage collector walks through torch's million objects once, and what is garbage goes all the same."""

import gc
import weakref

import numpy as np
import pytest

from optimizer.measure.latency import measure_latency
from optimizer.pipeline.execute import _frozen
from optimizer.stages.export import _collected_once


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_the_export_collects_once_and_freezes_what_stays():
    with _collected_once():
        assert not gc.isenabled()
        garbage = weakref.ref(Cycle())
        assert garbage() is not None
    assert gc.isenabled()
    assert garbage() is None
    assert gc.get_freeze_count() > 0


def test_what_is_still_in_scope_then_stays_until_the_thaw():
    """The twin: garbage of later on is only found once the steps have ended."""
    with _frozen():
        with _collected_once():
            kept = Cycle()
        seen = weakref.ref(kept)
        del kept
        gc.collect()
        assert seen() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None


def test_an_export_that_fails_leaves_the_collector_on():
    with pytest.raises(ValueError, match="axis"), _collected_once():
        raise ValueError("axis")
    assert gc.isenabled()


class Probe:
    """A runner that notes what the collector looks at while it is timed."""

    def __init__(self):
        self.frozen, self.enabled = [], []

    def bind(self, feed):
        def call():
            self.frozen.append(gc.get_freeze_count())
            self.enabled.append(gc.isenabled())

        return call


def test_latency_is_timed_without_collections_over_what_was_there_before():
    probe = Probe()
    feeds = {1: {"x": np.zeros((1, 2), np.float32)}}
    measure_latency({"a": probe}, feeds, baseline="a", seconds=0.02, progress=lambda done, total: None)
    assert min(probe.frozen) > 1000
    assert not probe.enabled[-1]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
