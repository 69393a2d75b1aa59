from __future__ import annotations

import threading
import time

import numpy as np
from quantization_graphs import Arrays

from optimizer.calibration.batching import Fit, fitting_batches


def rows(*lengths: int) -> Arrays:
    return Arrays([np.full(n, i, dtype=np.float32) for i, n in enumerate(lengths)])


def lengths(samples: Arrays, fit: Fit, cost: int = 4) -> list[tuple[int, int]]:
    """Each batch as (samples, length); a sample takes `cost` bytes per value."""
    found = []
    for batch in fitting_batches(samples, fit.size):
        values = batch.inputs["image"]
        fit.took(batch, values.size * cost)
        found.append(values.shape)
    return found


def test_the_first_sample_of_a_shape_tells_how_many_of_it_go_together() -> None:
    assert lengths(rows(*[10] * 9), Fit(4, 1000)) == [(1, 10), (3, 10), (4, 10), (1, 10)]


def test_each_shape_has_its_own_size() -> None:
    found = lengths(rows(*[10] * 8, *[100] * 4), Fit(8, 800))
    assert found == [(1, 10), (7, 10), (1, 100), (1, 100), (2, 100)] or max(n * w * 4 for n, w in found) <= 800
    assert sum(n for n, _ in found) == 12


def test_one_that_is_too_large_by_itself_still_runs() -> None:
    assert lengths(rows(50, 50, 50), Fit(8, 10)) == [(1, 50)] * 3


def test_none_is_dropped_and_the_order_stays() -> None:
    samples = rows(3, 3, 5, 3, 3, 3, 5, 5)
    fit = Fit(2, 1000)
    seen = []
    for batch in fitting_batches(samples, fit.size):
        fit.took(batch, 1)
        seen += [int(row[0]) for row in batch.inputs["image"]]
    assert seen == list(range(8))


def test_a_size_waits_for_what_the_first_sample_took_in_another_thread() -> None:
    fit = Fit(8, 80)
    stream = fitting_batches(rows(10, 10, 10), fit.size)
    first = next(stream)

    def later() -> None:
        time.sleep(0.05)
        fit.took(first, 40)

    thread = threading.Thread(target=later)
    thread.start()
    assert len(next(stream)) == 1  # up to two samples, and batches end at whole multiples of it
    thread.join()
    assert len(next(stream)) == 1
