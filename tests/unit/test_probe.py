"""Trials are judged batch by batch: what is alive does not grow with the samples."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimizer.calibration import probe
from optimizer.calibration.probe import OutputErrors, Reference, decibels
from optimizer.data.samples import Sample, Samples

WIDTH, VOCABULARY = 8, 65_536


def wide(scale: float = 1.0) -> onnx.ModelProto:
    """A small input and 256 KB of logits a sample."""
    weight = np.random.default_rng(0).normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"], name="head")],
        "wide",
        [helper.make_tensor_value_info("x", 1, ["batch", WIDTH])],
        [helper.make_tensor_value_info("logits", 1, ["batch", VOCABULARY])],
        [numpy_helper.from_array(weight * np.float32(scale), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


class Rows(Samples):
    def __init__(self, count: int) -> None:
        self.rows = np.random.default_rng(1).normal(size=(count, WIDTH)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return Sample({"x": self.rows[index]}, None, str(index))


def peak(samples: int, monkeypatch: pytest.MonkeyPatch, held: int) -> tuple[int, float]:
    """Return the most bytes of outputs alive during a trial, and its SQNR in dB."""
    monkeypatch.setattr(probe, "_BATCH_BYTES", 1 << 20)  # four samples
    monkeypatch.setattr(probe, "_HELD_BYTES", held)
    alive = most = 0

    def freed(size: int) -> None:
        nonlocal alive
        alive -= size

    class Observed(probe.OnnxSession):
        def infer(self, feed: Any) -> dict[str, Any]:
            nonlocal alive, most
            found = super().infer(feed)
            for value in found.values():
                alive += value.nbytes
                weakref.finalize(value, freed, value.nbytes)
            most = max(most, alive)
            return found

    monkeypatch.setattr(probe, "OnnxSession", Observed)
    with Reference(wide(), Rows(samples)) as reference:
        decibels = reference.sqnr_db_of(wide(1.01))
    monkeypatch.undo()
    return most, decibels


def test_a_trial_holds_a_batch_of_outputs_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    many, found = peak(96, monkeypatch, 1 << 20)
    assert found == pytest.approx(40.0, abs=0.01)
    # What is held of the reference, and a batch of it and of the trial, before and behind each other.
    assert many <= (1 << 20) + 4 * (1 << 20)
    # The twin: with room for all of them, all of them are held, 24 MB.
    everything, same = peak(96, monkeypatch, 1 << 30)
    assert everything >= 96 * VOCABULARY * 4
    assert same == pytest.approx(found, abs=1e-9)


def test_a_second_trial_compares_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(probe, "_HELD_BYTES", 3 << 20)  # a part is held, the rest is computed again
    with Reference(wide(), Rows(21)) as reference:
        assert [reference.sqnr_db_of(wide(1.1)) for _ in range(2)] == [pytest.approx(20.0, abs=0.01)] * 2
        assert reference.sqnr_db_of(wide()) == np.inf


def test_sums_over_batches_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    expected, found = rng.normal(size=(2, 50, 7)).astype(np.float32)
    parts = OutputErrors()
    for start in range(0, 50, 9):
        parts.add({"y": expected[start : start + 9]}, {"y": found[start : start + 9]})
    exact = 10 * np.log10((expected.astype(float) ** 2).sum() / ((found.astype(float) - expected) ** 2).sum())
    assert decibels(parts.shares()) == pytest.approx(exact, abs=1e-6)


def test_a_trial_that_is_not_a_number_is_the_worst() -> None:
    errors = OutputErrors()
    errors.add({"y": np.ones(3, np.float32)}, {"y": np.array([1, np.nan, 1], np.float32)})
    assert decibels(errors.shares()) == -np.inf


def test_shares_are_by_sample_in_their_order_and_sum_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_BATCH_BYTES", 1 << 20)
    rows = Rows(21)
    rows.rows[4] = 0
    with Reference(wide(), rows) as reference:
        shares = reference.shares_of(wide(1.1))
        assert reference.sqnr_db_of(wide(1.1)) == pytest.approx(-10 * np.log10(shares.sum()), abs=1e-9)
    assert shares.shape == (21,)
    assert np.flatnonzero(shares == 0).tolist() == [4]


def test_rows_that_fill_up_a_batch_count_with_the_sample_they_repeat() -> None:
    errors = OutputErrors()
    expected, found = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    found[[0, 3]] = 2
    errors.add({"y": expected}, {"y": found}, np.array([0, 1, 2, 0]))
    np.testing.assert_allclose(errors.shares(), [0.5, 0, 0])


def test_an_output_without_the_batch_in_front_makes_the_batch_one_sample() -> None:
    errors = OutputErrors()
    one = {"y": np.ones((3, 2), np.float32), "z": np.ones(5, np.float32)}
    errors.add(one, {name: 2 * value for name, value in one.items()}, np.arange(3))
    errors.add(one, one, np.arange(3))
    np.testing.assert_allclose(errors.shares(), [0.5, 0])
