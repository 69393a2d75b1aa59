"""Golden samples where shapes vary: of one shape, from the whole evaluation set, paired with every model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from optimizer.data.samples import Sample, Samples, batches
from optimizer.errors import StageError
from optimizer.measure.accuracy import Evaluated, evaluate
from optimizer.measure.golden import GoldenSamples
from optimizer.types import TensorSpec

IDS = TensorSpec("ids", "int64", ("batch", "length"))


class Sentences(Samples):
    """Sample i has `lengths[i]` tokens, all i + 1."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        self.decoded.append(index)
        length = self.lengths[index]
        return Sample({"ids": np.full(length, index + 1), "mask": np.ones(length, np.int64)}, 0.0, str(index))


class Sums:
    """Sums the tokens and adds `bias`; fails on the token `refuses`, once that came `times` before."""

    inputs = (IDS, TensorSpec("mask", "int64", ("batch", "length")))

    def __init__(self, bias: float = 0.0, refuses: int = 0, times: int = 0) -> None:
        self.bias, self.refuses, self.times = bias, refuses, times

    def infer(self, feed: Any) -> dict[str, Any]:
        if self.refuses in feed["ids"]:
            if not self.times:
                raise StageError("no", where="candidate")
            self.times -= 1
        return {"sum": (feed["ids"] * feed["mask"]).sum(axis=1) + np.float32(self.bias)}


def run(data: Samples, batch: int = 4, **candidates: Sums) -> Evaluated:
    return evaluate(
        Sums(), candidates, data, batch=batch, metrics={"mean_absolute_error": None}, progress=lambda *_: None
    )


def chosen(lengths: Sequence[int], batch: int = 4) -> list[int]:
    """The golden samples' places."""
    found = run(Sentences(lengths), batch).baseline.golden_inputs["ids"]
    assert len({len(row) for row in found}) == 1
    return [int(row[0]) - 1 for row in found]


RAGGED = [54, 54, *(8 + (i * 7) % 13 for i in range(200))]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_ragged_samples_give_as_many_golden_ones_as_samples_of_one_shape(batch: int) -> None:
    lengths = [54, *range(8, 40), 54, 20, 20, 54, 54, 54, 20, 54, 54, 20, 54, 9, *[20] * 9]
    assert chosen(lengths, batch) == [i for i, length in enumerate(lengths) if length == 54][:8]


def test_the_shape_that_has_enough_first_is_taken_though_another_is_more_frequent() -> None:
    early, late = [8, 9] * 8, [30] * 50
    assert chosen(early + late) == list(range(0, 16, 2))


def test_without_enough_of_any_shape_the_most_frequent_is_taken_and_of_equals_the_first_seen() -> None:
    assert chosen([5, 6, 7, 6, 7, 6, 7]) == [1, 3, 5]
    assert chosen([5, 6, 7, 8]) == [0]


def test_another_shape_that_is_complete_in_one_batch_is_not_mixed_with_the_first_ones() -> None:
    assert chosen([5] * 3 + [6] * 8 + [5], batch=8) == list(range(3, 11))


def test_inputs_stay_paired_with_the_outputs_of_every_model() -> None:
    found = run(Sentences(RAGGED), other=Sums(bias=1.0))
    inputs: Any = found.baseline.golden_inputs
    expected = (inputs["ids"] * inputs["mask"]).sum(axis=1)
    assert len(expected) == 8
    np.testing.assert_array_equal(found.baseline.golden_outputs["sum"], expected)
    np.testing.assert_array_equal(found.candidates["other"].golden_outputs["sum"], expected + 1)


def test_golden_samples_change_no_outcome_and_no_numerics() -> None:
    found = run(Sentences(RAGGED), other=Sums(bias=1.0))
    assert found.baseline.outcomes["mean_absolute_error"].tolist() == [float(n * (i + 1)) for i, n in enumerate(RAGGED)]
    assert found.candidates["other"].numerics["sum"].max_abs == 1.0


def test_only_scattered_golden_samples_are_decoded_once_more() -> None:
    data = Sentences([5, 6] * 10)
    run(data)
    assert data.decoded == [*range(20), *range(0, 16, 2)]
    alike = Sentences([5] * 10 + [6] * 10)
    run(alike)
    assert alike.decoded == list(range(20))


def test_a_candidate_that_fails_on_the_golden_samples_is_dropped() -> None:
    found = run(Sentences([5, 6] * 10), bad=Sums(refuses=3, times=1), good=Sums())
    assert str(found.failures["bad"]) == "candidate: no"
    assert set(found.candidates) == {"good"}


def test_too_few_of_one_shape_are_said_with_their_shape() -> None:
    found = run(Sentences(range(8, 28))).baseline
    assert found.notes == [
        "1 golden sample instead of 8, of 'ids' [8], 'mask' [8]: no more of the 20 evaluation samples have one shape"
    ]
    assert run(Sentences(RAGGED)).baseline.notes == []
    assert run(Sentences([5] * 7)).baseline.notes == []  # there are no more samples


def test_nothing_but_the_first_samples_inputs_is_kept() -> None:
    golden, data = GoldenSamples(8), Sentences([54, 54, *(8 + i % 100 for i in range(700))])
    kept = sum(golden.take(part) for part in batches(data, 16))
    assert kept == 2
    assert len(golden.inputs()["ids"]) == 2
