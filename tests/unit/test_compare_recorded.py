"""What two recorded values alone can decide: what every pairing of the samples would have decided alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bundle_pair
import numpy as np
import pytest

from optimizer.compare.accuracy import _regression
from optimizer.compare.recorded import UnpairedError, compare_recorded, pairings
from optimizer.compare.result import LEVEL, Check
from optimizer.compare.shipped import read_bundle
from optimizer.measure.accuracy import metric_value
from optimizer.metrics import metric_named
from optimizer.recipe.model import Gate, MetricLimit
from optimizer.runtime.passport import render, seal

TOP1 = metric_named("top1")
MAE = metric_named("mean_absolute_error")


def recorded(outcomes: np.ndarray, metric: str = "top1") -> dict[str, Any]:
    """What a passport says of these outcomes."""
    return metric_value(metric, outcomes).model_dump(mode="json")


def of_two(first: np.ndarray, second: np.ndarray, metric: str = "top1") -> str:
    """What the recorded values decide."""
    found = pairings(metric_named(metric), recorded(first, metric), recorded(second, metric), LEVEL)
    assert found.unlikely <= found.likely
    return "fail" if found.unlikely else "inconclusive" if found.likely else "pass"


@pytest.mark.parametrize("seed", range(8))
def test_what_is_decided_without_the_samples_is_what_the_samples_decide(seed: int) -> None:
    """Shares: over changes of every size and every overlap, no answer contradicts the paired one."""
    rng = np.random.default_rng(seed)
    answers = set()
    for _ in range(40):
        count = int(rng.integers(20, 2000))
        first = (rng.random(count) < rng.uniform(0.5, 1)).astype(float)
        flipped = rng.random(count) < rng.choice([0.002, 0.02, 0.2])
        second = np.where(flipped, (rng.random(count) < rng.uniform(0, 1)).astype(float), first)
        paired, _ = _regression(TOP1, first, second)
        answer = of_two(first, second)
        assert answer in (paired, "inconclusive")
        answers.add(answer)
    assert "pass" in answers


def test_all_three_answers_occur_and_each_is_the_extremes() -> None:
    first = np.r_[np.ones(900), np.zeros(100)]
    few, some, many = (np.r_[np.zeros(lost), first[lost:]] for lost in (3, 30, 200))
    assert [of_two(first, second) for second in (first, few, some, many)] == ["pass", "pass", "inconclusive", "fail"]
    # 30 fewer: a regression if those were lost and nothing else, none if 130 were lost and 100 gained.
    apart = np.r_[np.zeros(130), np.ones(870)]
    assert apart.sum() == some.sum()
    assert _regression(TOP1, first, some)[0] == "fail"
    assert _regression(TOP1, first, apart)[0] == "pass"


@pytest.mark.parametrize("seed", range(4))
def test_other_means_are_decided_only_where_their_errors_add_up_to_no_doubt(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.exponential(1.0, 400)
    for factor, shuffled in ((1.0, False), (1.005, True), (1.05, False), (1.05, True), (2.0, True)):
        second = first * factor
        if shuffled:
            second = rng.permutation(second)
        paired, _ = _regression(MAE, first, second)
        assert of_two(first, second, "mean_absolute_error") in (paired, "inconclusive")
    assert of_two(first, first, "mean_absolute_error") == "pass"
    assert of_two(first, first * 1.05, "mean_absolute_error") == "inconclusive"
    assert of_two(first, first * 2, "mean_absolute_error") == "fail"
    assert of_two(first * 2, first, "mean_absolute_error") == "pass"


def test_a_value_that_is_no_share_of_its_samples_is_refused() -> None:
    with pytest.raises(UnpairedError, match="no share of 10 samples"):
        pairings(TOP1, {"value": 0.55, "samples": 10}, {"value": 0.5, "samples": 10}, LEVEL)


def top1(value: float, samples: int = 1000, **more: Any) -> dict[str, Any]:
    return {"accuracy": {"top1": {"value": value, "samples": samples, "ci95": [0.0, 1.0]}}, **more}


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return bundle_pair.changed(bundle_pair.write(tmp_path / "bundle"), tmp_path / "before", **top1(0.9))


def resealed(folder: Path, **origin: Any) -> Path:
    """The same bundle with another `from` in its passport; None takes a key away."""
    document = json.loads((folder / "passport.json").read_text())
    document["from"] = {k: v for k, v in (document["from"] | origin).items() if v is not None}
    (folder / "passport.json").write_bytes(render(seal(document)))
    return folder


def judged(before: Path, after: Path, gate: Gate | None = None) -> Check:
    sides = read_bundle(before, "baseline"), read_bundle(after, "candidate")
    return next(c for c in compare_recorded(*sides, gate) if c.subject == "top1")


def test_the_sentence_says_what_was_judged_and_how(before: Path, tmp_path: Path) -> None:
    worse = bundle_pair.retrained(before, tmp_path / "worse", **top1(0.7))
    said = judged(before, worse)
    assert (said.finding, said.before, said.after) == ("fail", "0.9000", "0.7000")
    assert "top1 changed by -0.2000 from passport to passport (99 % interval -0.2" in said.sentence
    assert "over every pairing of the samples" in said.sentence
    assert said.sentence.endswith("is taken from their number and 5 of them, the golden inputs")


def test_what_depends_on_the_pairing_is_undecided_with_what_decides_it(before: Path, tmp_path: Path) -> None:
    said = judged(before, bundle_pair.retrained(before, tmp_path / "worse", **top1(0.87)))
    assert said.finding == "inconclusive"
    assert "depends on how the samples pair, which no bundle holds" in said.sentence
    assert "compare the folders of the two runs, whose outcomes decide" in said.sentence


def test_values_of_other_samples_are_not_judged(before: Path, tmp_path: Path) -> None:
    fewer = bundle_pair.retrained(before, tmp_path / "fewer", **top1(0.9, samples=999))
    assert judged(before, fewer).finding == "inconclusive"
    assert "1,000 samples before and 999 after are not the same" in judged(before, fewer).sentence
    (tmp_path / "other").mkdir()
    inputs, outputs = bundle_pair.read_golden(before / bundle_pair.GOLDEN)
    other = {name: array + 1 for name, array in inputs.items()}
    bundle_pair.write_golden(tmp_path / "other" / bundle_pair.GOLDEN, other, outputs)
    said = judged(before, bundle_pair.retrained(before, tmp_path / "other", **top1(0.9)))
    assert said.finding == "inconclusive"
    assert "the golden inputs are not the same, so neither are the evaluation samples" in said.sentence


def test_a_metric_that_one_of_them_lacks_is_undecided_or_new(before: Path, tmp_path: Path) -> None:
    lacking = bundle_pair.retrained(before, tmp_path / "lacking", accuracy={})
    said = judged(before, lacking)
    assert (said.finding, said.after) == ("inconclusive", "-")
    assert "the passport of the candidate does not hold it" in said.sentence
    assert (judged(lacking, before).finding, judged(lacking, before).sentence) == ("shown", "top1 is new")


def test_the_same_artifact_has_one_accuracy_only_where_the_passports_say_one(before: Path, tmp_path: Path) -> None:
    same = judged(before, bundle_pair.changed(before, tmp_path / "same"))
    assert (same.finding, same.sentence.endswith("and so is what is recorded")) == ("pass", True)
    worse = judged(before, bundle_pair.changed(before, tmp_path / "worse", **top1(0.5)))
    assert worse.finding == "fail"
    fewer = judged(before, bundle_pair.changed(before, tmp_path / "fewer", **top1(0.5, samples=10)))
    assert fewer.finding == "inconclusive"


def test_an_equal_evaluation_is_known_and_another_is_said(before: Path, tmp_path: Path) -> None:
    one = resealed(bundle_pair.changed(before, tmp_path / "one"), evaluation_sha256="a")
    worse = bundle_pair.retrained(before, tmp_path / "worse", **top1(0.7))
    assert "taken from" not in judged(one, resealed(worse, evaluation_sha256="a")).sentence
    said = judged(one, resealed(worse, evaluation_sha256="b")).sentence
    assert said.endswith("the evaluation data or its code changed, but 5 samples, the golden inputs, did not")
    assert "taken from their number" in judged(before, resealed(worse, evaluation_sha256="b")).sentence


def test_two_passports_that_name_no_run_are_not_of_one(before: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    inputs, outputs = bundle_pair.read_golden(before / bundle_pair.GOLDEN)
    other = {name: array + 1 for name, array in inputs.items()}
    bundle_pair.write_golden(tmp_path / "other" / bundle_pair.GOLDEN, other, outputs)
    after = resealed(bundle_pair.retrained(before, tmp_path / "other", **top1(0.1)), report_sha256=None)
    assert judged(resealed(before, report_sha256=None), after).finding == "inconclusive"


@pytest.mark.parametrize("count", range(2, 10))
def test_so_few_errors_that_no_pairing_convicts_are_not_convicted(count: int) -> None:
    rng = np.random.default_rng(count)
    first, second = np.abs(rng.normal(1, 0.1, count)), np.abs(rng.normal(9, 0.1, count))
    paired = {_regression(MAE, first, second[rng.permutation(count)])[0] for _ in range(30)}
    assert paired == ({"fail"} if count > 7 else {"pass"})
    assert {of_two(first, second, "mean_absolute_error")} == paired


@pytest.mark.parametrize("count", [8, 12, 20, 40])
def test_few_errors_are_convicted_only_where_every_pairing_would(count: int) -> None:
    """One difference of the other sign is enough, among 8, for a p-value above 0.01."""
    rng = np.random.default_rng(count)
    answers = set()
    for trial in range(40):
        first, second = rng.exponential(1, count), rng.lognormal(0, 1, count) * rng.choice([1, 2, 4])
        if trial % 2:
            first, second = np.abs(rng.normal(1, 0.2, count)), rng.normal(rng.choice([1.5, 2, 4]), 0.3, count)
        alike, far = (
            np.sort(second)[np.argsort(np.argsort(first))],
            np.sort(second)[::-1][np.argsort(np.argsort(first))],
        )
        orders = [alike, far, *(rng.permutation(second) for _ in range(8))]
        answer = of_two(first, second, "mean_absolute_error")
        assert answer == "inconclusive" or {_regression(MAE, first, each)[0] for each in orders} == {answer}
        answers.add(answer)
    assert answers >= {"fail", "inconclusive"}


def test_a_single_error_is_not_judged() -> None:
    one = {"value": 1.0, "samples": 1, "ci95": [1.0, 1.0]}
    with pytest.raises(UnpairedError, match="no interval"):
        pairings(MAE, one, one, LEVEL)


@pytest.mark.parametrize(("limit", "finding"), [(0.3, "pass"), (0.05, "fail"), (0.2, "inconclusive")])
def test_a_gate_is_met_only_if_it_is_however_the_samples_pair(
    before: Path, tmp_path: Path, limit: float, finding: str
) -> None:
    after = bundle_pair.retrained(before, tmp_path / "after", **top1(0.7))
    said = judged(before, after, Gate(metrics={"top1": MetricLimit(max_drop=limit)}))
    assert said.finding == finding
    assert "95 % interval" in said.sentence
    assert judged(before, after, Gate()).finding == "shown"


def test_what_another_runtime_computed_is_said(before: Path, tmp_path: Path) -> None:
    built = {"status": "built", "accuracy_runtime": "onnxruntime on cpu"}
    said = judged(before, bundle_pair.retrained(before, tmp_path / "after", **top1(0.9), **built))
    by = "was computed by onnxruntime on cpu from the same graph, not by onnxruntime"
    assert said.sentence.endswith(f"that of the candidate {by}")
    other = judged(tmp_path / "after", before).sentence
    assert other.endswith(f"that of the baseline {by}")
