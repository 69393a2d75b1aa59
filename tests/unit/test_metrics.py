"""Metrics: outcomes per sample, and targets that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, top_k_accuracy_score

from optimizer.errors import StageError, UsageError
from optimizer.metrics import METRICS, metric_named

SCORES = np.random.default_rng(1).normal(size=(200, 10)).astype(np.float32)
LABELS = [int(v) for v in np.random.default_rng(2).integers(0, 10, 200)]


def outcomes(name: str, output: Any, targets: list[Any]) -> np.ndarray:
    found = metric_named(name).outcomes(np.asarray(output), targets, [f"s{i}" for i in range(len(targets))])
    assert found.dtype == np.float64
    assert found.shape == (len(targets),)
    return found


@pytest.mark.parametrize(("name", "k"), [("top1", 1), ("top5", 5)])
def test_topk_is_scikit_learns(name: str, k: int) -> None:
    expected = top_k_accuracy_score(LABELS, SCORES, k=k, labels=range(10))
    assert outcomes(name, SCORES, LABELS).mean() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "reference"), [("mean_absolute_error", mean_absolute_error), ("mean_squared_error", mean_squared_error)]
)
def test_errors_are_scikit_learns(name: str, reference: Any) -> None:
    targets = np.random.default_rng(3).normal(size=SCORES.shape)
    assert outcomes(name, SCORES, list(targets)).mean() == pytest.approx(reference(targets, SCORES))


def test_errors_are_computed_in_float64() -> None:
    output = np.full((1, 4), 4096.0, np.float16)
    assert outcomes("mean_squared_error", output, [np.zeros(4)])[0] == 4096.0**2


def test_plain_numbers_fit_a_head_of_one() -> None:
    assert outcomes("mean_absolute_error", np.array([[2.0], [5.0]]), [1.0, 7]).tolist() == [1.0, 2.0]
    assert outcomes("mean_absolute_error", np.array([2.0, 5.0]), [1.0, 7]).tolist() == [1.0, 2.0]


def test_of_equal_scores_the_first_wins_as_in_argmax() -> None:
    scores = np.zeros((3, 4), np.float32)
    assert outcomes("top1", scores, [0, 1, 3]).tolist() == [1, 0, 0]


def test_a_row_with_nan_is_wrong_and_one_with_infinities_is_ranked() -> None:
    scores = np.array([[9, np.nan, 0], [9, -np.inf, 0], [np.inf, 1, 0]], np.float32)
    assert outcomes("top1", scores, [0, 0, 0]).tolist() == [0, 1, 1]


@pytest.mark.parametrize("label", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_any_integer_is_a_label(label: Any) -> None:
    assert outcomes("top1", np.eye(4)[[3]], [label]).tolist() == [1]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (12, "the label is 12 and the output has 10 classes (allowed: 0 to 9)"),
        (-1, "the label is -1 and the output has 10 classes (allowed: 0 to 9)"),
        (3.0, "the label is '3.0' (float); needed is a class index, an integer from 0 to 9"),
        (np.float32(3), "the label is '3.0' (float32)"),
        ("cat", "the label is 'cat' (str)"),
        (True, "the label is 'True' (bool)"),
        (None, "the label is missing; needed is a class index, an integer from 0 to 9"),
        (np.array([1, 2]), "(ndarray)"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_with_its_sample(label: Any, said: str) -> None:
    with pytest.raises(StageError) as caught:
        outcomes("top1", SCORES[:2], [1, label])
    assert said in str(caught.value)
    assert "metric top1, sample s1" in str(caught.value)


def test_an_output_that_is_no_table_of_scores_is_refused() -> None:
    with pytest.raises(StageError, match=r"needs an output of \[batch, classes\], got \[2, 3, 4\]"):
        outcomes("top1", np.zeros((2, 3, 4)), [0, 0])
    with pytest.raises(StageError, match="needs at least 5 classes, the output has 3"):
        outcomes("top5", np.zeros((2, 3)), [0, 0])


@pytest.mark.parametrize(
    ("output", "target", "said"),
    [
        (np.zeros((1, 2, 3)), np.zeros((3, 2)), "the target has the shape [3, 2], the output [2, 3] per sample"),
        (np.zeros((1, 3)), 1.0, "the target has the shape [], the output [3] per sample"),
        (np.zeros((1, 1)), None, "the target is missing"),
        (np.zeros((1, 1)), "one", "the target is 'one' (str), not numbers"),
        (np.zeros((1, 1)), float("nan"), "the target holds nan"),
        (np.array([[np.inf]]), 1.0, "the output is not finite"),
        (np.array([[np.nan]]), 1.0, "the output is not finite"),
    ],
)
def test_a_target_or_output_without_an_error_is_refused(output: Any, target: Any, said: str) -> None:
    with pytest.raises(StageError) as caught:
        outcomes("mean_absolute_error", output, [target])
    assert said in str(caught.value)
    assert "sample s0" in str(caught.value)


def test_names_are_unique_and_an_unknown_one_is_refused_with_the_known() -> None:
    assert len({m.name for m in METRICS}) == len(METRICS)
    with pytest.raises(UsageError, match="known: top1, top5"):
        metric_named("top3")
