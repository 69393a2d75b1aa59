from __future__ import annotations

import numpy as np
import pytest
from quantization_graphs import Arrays, build

from optimizer.calibration import learn
from optimizer.calibration.learning_batches import LearningBatches, groups_of, split
from optimizer.graph.differentiable import TorchGraph


def rows(*lengths: int) -> Arrays:
    return Arrays([np.full(n, i, dtype=np.float32) for i, n in enumerate(lengths)])


def test_batches_are_of_one_shape_and_leave_none_out() -> None:
    samples = rows(3, 5, 3, 5, 3, 3, 5)
    groups = groups_of(samples)
    data = LearningBatches(samples, groups, None, {((3,),): 3, ((5,),): 2})
    order = [6, 5, 4, 3, 2, 1, 0]
    found = [feed["image"] for feed in data.of(order)]
    assert sorted(int(row[0]) for batch in found for row in batch) == sorted(order)
    assert [batch.shape for batch in found] == [(2, 5), (3, 3), (1, 5), (1, 3)]
    assert data.steps(order) == len(found)
    assert data.largest(order)["image"].shape == (4, 3)


def test_a_fixed_batch_is_filled_with_samples_of_the_same_shape() -> None:
    samples = rows(3, 3, 3, 5)
    data = LearningBatches(samples, groups_of(samples), 2, {((3,),): 2, ((5,),): 2})
    assert [feed["image"].shape for feed in data.of(range(4))] == [(2, 3), (2, 3), (2, 5)]


def test_samples_that_judge_come_one_at_a_time_where_the_graph_takes_it() -> None:
    samples = rows(3, 5, 3)
    groups = groups_of(samples)
    sizes = {((3,),): 2, ((5,),): 2}
    alone = [
        (feed["image"].shape, list(rows))
        for feed, rows in LearningBatches(samples, groups, None, sizes).judging([2, 1])
    ]
    assert alone == [((1, 3), [0]), ((1, 5), [0])]
    filled = [list(rows) for _, rows in LearningBatches(samples, groups, 2, sizes).judging([0, 1, 2])]
    assert filled == [[0, 1], [0, 0]]  # the sample of length 5 fills its batch by itself, and counts once


@pytest.mark.parametrize(("count", "held"), [(12, 6), (40, 10), (512, 64)])
def test_enough_samples_are_held_out_to_judge(count: int, held: int) -> None:
    judging, learning = split(count)
    assert len(judging) == held
    assert sorted([*judging, *learning]) == list(range(count))


def test_each_shape_has_a_batch_that_fits_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[batch, 1, h, w] image) => (float[batch, 2, h, w] y) { y = Conv <pads = [1, 1, 1, 1]> (image, w0) }"
    samples = Arrays([np.ones((1, side, side), dtype=np.float32) for side in (4, 32, 4)])
    large = 2 * 32 * 32 * 4  # bytes of activations
    monkeypatch.setattr(learn, "_BUDGET_BYTES", 3 * 5 * large)
    sizes = learn._sizes(TorchGraph(build(text, {"w0": (2, 1, 3, 3)})), samples, groups_of(samples), None)
    assert sizes == {((1, 4, 4),): learn.BATCH, ((1, 32, 32),): 5}
