"""One pass over the data: outcomes, numerics, golden samples, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from optimizer.data.samples import Sample, Samples
from optimizer.errors import StageError
from optimizer.measure.accuracy import Evaluated, evaluate, metric_delta, metric_value
from optimizer.measure.numerics import NumericsAccumulator
from optimizer.types import TensorSpec

WEIGHTS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(21, 6)).astype(np.float32)
SCORES = IMAGES @ WEIGHTS
LABELS = [int(v) for v in np.random.default_rng(2).integers(0, 4, 21)]


class Data(Samples):
    def __init__(self, images: Any = IMAGES, targets: Any = LABELS) -> None:
        self.images, self.targets = images, targets
        self.decoded = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if index >= len(self.images):
            raise IndexError
        self.decoded += 1
        return Sample({"x": self.images[index]}, self.targets[index], f"test[{index}]")


class Model:
    """Scores by WEIGHTS; `change` alters them."""

    def __init__(self, change: Callable[[Any], Any] = lambda s: s, batch: int | str = "batch") -> None:
        self.change, self.batch = change, batch
        self.inputs = (TensorSpec("x", "float32", (batch, 6)),)
        self.sizes: list[int] = []

    def infer(self, feed: Any) -> dict[str, Any]:
        self.sizes.append(len(feed["x"]))
        if isinstance(self.batch, int):
            assert len(feed["x"]) == self.batch
        scores = np.stack([np.dot(row, WEIGHTS) for row in feed["x"]])
        return {"scores": self.change(scores), "best": scores.argmax(axis=1)}


def run(base: Any = None, data: Any = None, *, batch: int = 8, metrics: Any = None, **candidates: Any) -> Evaluated:
    return evaluate(
        base or Model(),
        candidates,
        Data() if data is None else data,
        batch=batch,
        metrics={"top1": None} if metrics is None else metrics,
        progress=lambda done, total: None,
    )


def test_each_sample_is_decoded_once_for_all_models() -> None:
    data = Data()
    told: list[tuple[int, int]] = []
    found = evaluate(
        Model(),
        {"a": Model(), "b": Model()},
        data,
        batch=8,
        metrics={"top1": None},
        progress=lambda *now: told.append(now),
    )
    assert data.decoded == 21
    assert told == [(8, 21), (16, 21), (21, 21)]
    assert set(found.candidates) == {"a", "b"}


def test_outcomes_are_those_of_every_sample_in_order() -> None:
    found = run(other=Model(lambda s: -s))
    assert found.baseline.outcomes["top1"].tolist() == (SCORES.argmax(1) == LABELS).astype(float).tolist()
    assert found.candidates["other"].outcomes["top1"].tolist() == (SCORES.argmin(1) == LABELS).astype(float).tolist()


@pytest.mark.parametrize("batch", [1, 5, 8, 21, 64])
def test_the_batch_does_not_change_what_is_found(batch: int) -> None:
    found = run(batch=batch, other=Model(lambda s: s * 1.01))
    whole = run(batch=21, other=Model(lambda s: s * 1.01))
    one, other = found.candidates["other"], whole.candidates["other"]
    assert one.outcomes["top1"].tolist() == other.outcomes["top1"].tolist()
    assert one.numerics["scores"].sqnr_db == pytest.approx(other.numerics["scores"].sqnr_db)
    np.testing.assert_array_equal(one.golden_outputs["scores"], other.golden_outputs["scores"])


def test_a_short_last_batch_is_filled_up_and_cut_again() -> None:
    fixed = Model(batch=8)
    base = Model()
    found = run(base, fixed=fixed)
    assert fixed.sizes == base.sizes == [8, 8, 8]
    assert found.candidates["fixed"].outcomes["top1"].tolist() == found.baseline.outcomes["top1"].tolist()
    assert len(found.baseline.outcomes["top1"]) == 21


def test_numerics_are_those_of_the_formulas() -> None:
    noise = np.random.default_rng(5).normal(0, 0.01, SCORES.shape).astype(np.float32)
    noisy = iter(np.split(noise, [8, 16]))
    found = run(other=Model(lambda s: s + np.pad(part := next(noisy), ((0, 8 - len(part)), (0, 0)))))
    ref = np.stack([np.dot(row, WEIGHTS) for row in IMAGES])
    out = (ref + noise).astype(np.float64)
    error = out - ref
    said = found.candidates["other"].numerics["scores"]
    assert said.max_abs == pytest.approx(np.abs(error).max())
    assert said.sqnr_db == pytest.approx(10 * np.log10((ref.astype(np.float64) ** 2).sum() / (error**2).sum()))
    assert said.cosine == pytest.approx((ref * out).sum() / np.linalg.norm(ref) / np.linalg.norm(out))


def test_an_exact_match_has_no_sqnr_and_no_error() -> None:
    said = run(other=Model()).candidates["other"].numerics["scores"]
    assert (said.max_abs, said.sqnr_db) == (0.0, None)
    assert said.cosine == pytest.approx(1.0)


def test_numerics_of_a_value_that_only_one_side_has_infinite_are_not_defined() -> None:
    shared, alone = NumericsAccumulator(), NumericsAccumulator()
    masked = np.array([1.0, -np.inf, 2.0])
    shared.add(masked, masked + np.array([0.0, 0.0, 0.5]))
    assert shared.result().max_abs == 0.5
    alone.add(np.array([1.0, 2.0]), np.array([1.0, np.inf]))
    assert alone.result().max_abs is None
    assert alone.not_finite == 1
    nans = NumericsAccumulator()
    nans.add(np.array([np.nan]), np.array([np.nan]))
    assert nans.result().cosine is None


def test_golden_are_the_first_samples_with_the_outputs_of_each_model() -> None:
    found = run(batch=3, other=Model(lambda s: -s))
    assert found.baseline.golden_inputs["x"].shape == (8, 6)
    np.testing.assert_array_equal(found.baseline.golden_inputs["x"], IMAGES[:8])
    np.testing.assert_allclose(found.candidates["other"].golden_outputs["scores"], -SCORES[:8], rtol=1e-5)
    assert len(found.baseline.golden_outputs["best"]) == 8


def test_golden_inputs_and_outputs_stay_paired_where_shapes_differ() -> None:
    class Sums:
        inputs = (TensorSpec("x", "float32", ("batch", "length")),)

        def infer(self, feed: Any) -> dict[str, Any]:
            return {"sum": feed["x"].sum(axis=1)}

    images = [np.full(n, i + 1.0, np.float32) for i, n in enumerate((3, 3, 5, 3))]
    found = run(Sums(), Data(images, [0.0] * 4), batch=2, metrics={"mean_absolute_error": "sum"})
    golden = found.baseline
    np.testing.assert_array_equal(golden.golden_inputs["x"].sum(axis=1), golden.golden_outputs["sum"])
    assert golden.golden_outputs["sum"].tolist() == [3.0, 6.0, 12.0]
    assert golden.outcomes["mean_absolute_error"].tolist() == [3.0, 6.0, 15.0, 12.0]


def test_nothing_of_a_batch_is_kept_alive() -> None:
    found = run(batch=21).baseline
    assert all(a.base is None or a.base.size == a.size for a in found.golden_outputs.values())


def test_a_metric_reads_the_output_it_names_and_the_first_of_the_baseline_otherwise() -> None:
    class Swapped(Model):
        def infer(self, feed: Any) -> dict[str, Any]:
            return dict(reversed(super().infer(feed).items()))

    found = run(other=Swapped())
    assert found.candidates["other"].outcomes["top1"].tolist() == found.baseline.outcomes["top1"].tolist()
    with pytest.raises(StageError, match=r"metric top1: there is no output 'logits' \(there are: scores, best\)"):
        run(metrics={"top1": "logits"})


def test_nan_is_a_wrong_answer_and_said() -> None:
    def broken(scores: Any) -> Any:
        scores = scores.copy()
        scores[0, 0] = np.nan
        return scores

    found = run(other=Model(broken)).candidates["other"]
    assert found.outcomes["top1"][[0, 8, 16]].tolist() == [0, 0, 0]
    assert "output 'scores' has NaN in 3 of 21 samples" in found.notes[0]
    assert found.numerics["scores"].max_abs is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s[:, :3], "output 'scores' has the shape [8, 3], the baseline's [8, 4]"),
        (lambda s: s.sum(), "output 'scores' has the shape []: its first axis is not the batch of 8"),
        (lambda s: s.T, "output 'scores' has the shape [4, 8]: its first axis is not the batch of 8"),
    ],
)
def test_a_candidate_that_fails_is_dropped_with_its_reason_and_the_others_go_on(change: Any, said: str) -> None:
    found = run(bad=Model(change), good=Model())
    assert said in str(found.failures["bad"])
    assert set(found.candidates) == {"good"}
    assert len(found.candidates["good"].outcomes["top1"]) == 21


def test_a_candidate_without_an_output_of_the_baseline_is_dropped() -> None:
    class Half(Model):
        def infer(self, feed: Any) -> dict[str, Any]:
            return {"scores": super().infer(feed)["scores"]}

    assert "there is no output 'best' (there are: scores)" in str(run(bad=Half()).failures["bad"])


def test_a_candidate_whose_own_error_stops_it_midway_is_dropped() -> None:
    def later(scores: Any) -> Any:
        raise StageError("out of memory", where="bad")

    found = run(bad=Model(later), good=Model())
    assert str(found.failures["bad"]) == "bad: out of memory"
    assert "good" in found.candidates


def test_the_baselines_error_is_raised() -> None:
    def fail(scores: Any) -> Any:
        raise StageError("refused", where="base")

    with pytest.raises(StageError, match="base: refused"):
        run(Model(fail))


def test_labels_beyond_the_outputs_are_refused_with_their_sample() -> None:
    labels = [*LABELS[:10], 12, *LABELS[11:]]
    with pytest.raises(StageError, match=r"sample test\[10\]: the label is 12 and the output has 4 classes"):
        run(data=Data(IMAGES, labels))


def test_no_samples_are_refused() -> None:
    with pytest.raises(StageError, match="evaluation samples: there are none"):
        run(data=Data(IMAGES[:0], []))


def test_targets_are_not_needed_without_metrics() -> None:
    found = run(data=Data(IMAGES, [None] * 21), metrics={}, other=Model())
    assert found.baseline.outcomes == {}
    assert found.candidates["other"].numerics["scores"].max_abs == 0.0


def test_values_and_deltas_say_their_interval_test_and_samples() -> None:
    first = np.array([1.0] * 90 + [0.0] * 10)
    second = np.array([1.0] * 80 + [0.0] * 20)
    value = metric_value("top1", first)
    assert (value.value, value.samples) == (pytest.approx(0.9), 100)
    assert value.ci95[0] < 0.9 < value.ci95[1]
    delta = metric_delta("top1", first, second)
    assert (delta.value, delta.test) == (pytest.approx(-0.1), "exact McNemar")
    assert delta.p_value == pytest.approx(2 / 2**10)
    assert delta.ci95[1] < 0
    other = metric_delta("mean_absolute_error", np.linspace(0, 1, 50), np.linspace(0, 1, 50) + 0.1)
    assert (other.value, other.test) == (pytest.approx(0.1), "paired bootstrap")
    assert other.p_value < 0.01
