"""Two reports: what is a regression, what is not, and what cannot be known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare_runs import RIGHT, lose, paces, usual

from optimizer.compare.latency import change_between
from optimizer.compare.reports import compare
from optimizer.compare.result import Check, Comparison
from optimizer.errors import UsageError
from optimizer.measure.series import Series
from optimizer.recipe.model import Gate, MetricLimit, SpeedupLimit
from optimizer.report.read import read_report
from optimizer.results import Numerics, Report

INT8 = "int8@onnxruntime"
BASE = "fp32@torch"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return usual(tmp_path / "before")


def judged(before: Path, after: Path, gate: Gate | None = None) -> Comparison:
    return compare(read_report(before), read_report(after), gate, baseline_folder=before, candidate_folder=after)


def check(found: Comparison, subject: str, candidate: str = INT8) -> Check:
    return next(c for c in found.checks if c.candidate == candidate and c.subject.startswith(subject))


def outcomes(int8: np.ndarray, base: np.ndarray = RIGHT) -> dict[str, np.ndarray]:
    return {BASE: base, INT8: int8}


def latency(seed: int, int8: float, base: float = 4.0, **more: Any) -> dict[str, np.ndarray]:
    return {BASE: paces(seed, base, **more), INT8: paces(seed + 100, int8, **more)}


def gate(max_drop: float | None = None, speedup: float | None = None) -> Gate:
    return Gate(
        metrics={} if max_drop is None else {"top1": MetricLimit(max_drop=max_drop)},
        speedup=None if speedup is None else SpeedupLimit(min=speedup),
    )


def test_a_report_against_itself_passes_with_and_without_a_gate(before: Path) -> None:
    assert judged(before, before).status == "pass"
    assert judged(before, before, gate(max_drop=0.0)).status == "pass"
    assert judged(before, before, gate(speedup=1.0)).status == "pass"


def test_another_session_of_the_same_artifacts_passes(before: Path, tmp_path: Path) -> None:
    for seed in range(1, 9):
        assert judged(before, usual(tmp_path / str(seed), seed)).status == "pass"


def test_a_lower_accuracy_is_a_regression_named_with_its_numbers(before: Path, tmp_path: Path) -> None:
    found = judged(before, usual(tmp_path / "after", 1, outcomes=outcomes(lose(40))))
    assert found.status == "fail"
    assert check(found, "top1").finding == "fail"
    assert "top1 changed by -0.0400" in found.reasons[0]
    assert "exact McNemar p =" in found.reasons[0]
    assert "a drop beyond the tolerance of 0.001" in found.reasons[0]


def test_few_samples_never_prove_that_nothing_got_worse(tmp_path: Path) -> None:
    few = RIGHT[880:920]
    one = usual(tmp_path / "one", outcomes=outcomes(few, few))
    other = usual(tmp_path / "other", 1, outcomes=outcomes(lose(2, few), few))
    found = check(judged(one, other), "top1")
    assert found.finding == "pass"
    assert "no drop beyond 0.2" in found.sentence
    assert "with 40 samples, a smaller one may be there" in found.sentence


def test_a_drop_within_the_tolerance_is_no_regression_however_sure(tmp_path: Path) -> None:
    many = np.concatenate([np.ones(99_000), np.zeros(1000)])
    one = usual(tmp_path / "one", outcomes=outcomes(many, many))
    found = check(judged(one, usual(tmp_path / "small", 1, outcomes=outcomes(lose(60, many), many))), "top1")
    assert found.finding == "pass"
    assert (
        check(judged(one, usual(tmp_path / "large", 1, outcomes=outcomes(lose(300, many), many))), "top1").finding
        == "fail"
    )


def test_unlike_counts_of_samples_are_not_paired(before: Path, tmp_path: Path) -> None:
    found = judged(before, usual(tmp_path / "after", 1, outcomes=outcomes(RIGHT[:999], RIGHT[:999])))
    assert found.status == "inconclusive"
    assert "1,000 samples before and 999 after cannot be paired" in check(found, "top1").sentence


def golden(folder: Path, value: float) -> None:
    (folder / "golden").mkdir()
    np.savez(folder / "golden" / "inputs.npz", x=np.full((8, 2), value))


def test_other_evaluation_samples_are_not_paired(before: Path, tmp_path: Path) -> None:
    after = usual(tmp_path / "after", 1)
    golden(before, 1.0)
    golden(after, 2.0)
    assert "the evaluation samples are not the same" in check(judged(before, after), "top1").sentence


def test_what_is_known_of_the_pairing_is_said(before: Path, tmp_path: Path) -> None:
    after = usual(tmp_path / "after", 1, outcomes=outcomes(lose(1)))
    assert "taken from their number" in check(judged(before, after), "top1").sentence
    golden(before, 1.0)
    golden(after, 1.0)
    assert "but 8 samples, the golden inputs, are the same" in check(judged(before, after), "top1").sentence
    for folder in (before, after):
        (folder / "run.json").write_text(json.dumps({"evaluation": {"split": "test"}}))
    assert check(judged(before, after), "top1").sentence.endswith("exact McNemar p = 1)")


def test_a_slowdown_is_a_regression_named_with_its_interval(before: Path, tmp_path: Path) -> None:
    found = judged(before, usual(tmp_path / "after", 1, latency=latency(1, 1.1)))
    assert found.status == "fail"
    said = check(found, "latency, batch 1")
    assert said.finding == "fail"
    assert "measured against fp32@torch" in said.sentence
    assert "beyond the tolerance of 1" in said.sentence


def test_what_did_not_change_cannot_have_become_slower(before: Path, tmp_path: Path) -> None:
    same = {INT8: {"artifact": {"path": "m", "sha256": f"{0:064x}", "bytes": 10_000, "format": "onnx"}}}
    found = judged(before, usual(tmp_path / "after", 1, latency=latency(1, 1.1), changed=same))
    said = check(found, "latency, batch 1")
    assert (found.status, said.finding) == ("pass", "shown")
    assert "artifact and packages are those of before, so look at what surrounds them" in said.sentence


def test_a_runtime_that_became_slower_with_a_new_version_is_a_regression(before: Path, tmp_path: Path) -> None:
    packages = {"packages": {"torch": "2.9.0", "onnxruntime": "2.0", "numpy": "2.1.0"}}
    found = judged(before, usual(tmp_path / "after", 1, latency=latency(1, 1.2), environment=packages))
    assert check(found, "latency, batch 1").finding == "fail"


def test_a_machine_that_is_slower_today_is_no_regression(before: Path, tmp_path: Path) -> None:
    found = judged(before, usual(tmp_path / "after", 1, latency=latency(1, 1.2, base=4.8)))
    assert check(found, "latency").finding == "pass"
    assert check(found, "latency", BASE).finding == "shown"
    assert found.status == "pass"


def test_a_yardstick_that_became_faster_convicts_nobody(before: Path, tmp_path: Path) -> None:
    found = judged(before, usual(tmp_path / "after", 1, latency=latency(1, 1.02, base=3.4)))
    said = check(found, "latency")
    assert said.finding != "fail"
    assert found.status in ("pass", "inconclusive")


def test_a_slowdown_far_beyond_the_drift_is_found_in_spite_of_it(before: Path, tmp_path: Path) -> None:
    assert judged(before, usual(tmp_path / "after", 1, latency=latency(1, 2.0, base=4.4))).status == "fail"


def test_faster_is_never_a_regression(before: Path, tmp_path: Path) -> None:
    assert judged(before, usual(tmp_path / "after", 1, latency=latency(1, 0.5))).status == "pass"


def other_weights(*names: str) -> dict[str, Any]:
    artifact = {"path": "m", "sha256": "f" * 64, "bytes": 10_000, "format": "onnx"}
    return {name: {"artifact": artifact} for name in names}


def test_without_a_common_yardstick_the_tolerance_is_wider(before: Path, tmp_path: Path) -> None:
    changed = other_weights(BASE, INT8)
    little = judged(before, usual(tmp_path / "a", 1, latency=latency(1, 1.03), changed=changed))
    much = judged(before, usual(tmp_path / "b", 1, latency=latency(1, 1.2), changed=changed))
    assert check(little, "latency").finding == "pass"
    assert check(much, "latency").finding == "fail"
    assert "without a common yardstick): slower beyond the tolerance of 5 %" in check(much, "latency").sentence


def test_a_new_version_of_the_baselines_runtime_is_no_yardstick(before: Path, tmp_path: Path) -> None:
    packages = {"packages": {"torch": "3.0.0", "onnxruntime": "1.23.0", "numpy": "2.1.0"}}
    found = judged(before, usual(tmp_path / "after", 1, environment=packages))
    assert "without a common yardstick" in check(found, "latency").sentence
    assert check(found, "latency", BASE).finding == "shown"
    assert found.notes == ("Other versions: torch 2.9.0 to 3.0.0.",)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"cpu": "Another"}, "another processor (A processor before, Another after)"),
        ({"cores": 4}, "another number of processors (2 before, 4 after)"),
        ({"threads": 2}, "another number of threads (1 before, 2 after)"),
    ],
)
def test_latency_of_unlike_conditions_is_shown_and_never_judged(
    before: Path, tmp_path: Path, environment: dict[str, Any], said: str
) -> None:
    after = usual(tmp_path / "after", 1, latency=latency(1, 3.0), environment=environment)
    found = judged(before, after)
    assert found.status == "pass"
    assert (check(found, "latency").finding, check(found, "latency").after[0]) == ("shown", "2")
    assert said in check(found, "latency").sentence
    # Asked for by a gate it is not known, and that is said.
    assert judged(before, after, gate(speedup=1.0)).status == "inconclusive"


def test_a_latency_that_did_not_hold_still_convicts_nobody(before: Path, tmp_path: Path) -> None:
    shaky = latency(1, 1.5)
    shaky[INT8] = shaky[INT8] * np.linspace(0.8, 1.3, 60)[:, None]
    found = judged(before, usual(tmp_path / "after", 1, latency=shaky))
    assert found.status == "inconclusive"
    assert "it was unstable after" in found.reasons[0]


def disturbed(folder: Path, seed: int, pace: float, **int8: Any) -> Path:
    """A run whose latencies are marked disturbed; `int8` is what else is said of that candidate."""
    timed = latency(seed, pace)
    mark = {"disturbed": True, "disturbed_rounds": 50, "rounds": 60}
    marked = {n: {"latency_ms": {"1": Series(t, 3).latency().model_dump(mode="json") | mark}} for n, t in timed.items()}
    marked[INT8] |= int8
    return usual(folder, seed, latency=timed, changed=marked)


@pytest.mark.parametrize(("pace", "quiet"), [(1.0, "pass"), (1.5, "fail")])
def test_a_disturbed_latency_decides_nothing(before: Path, tmp_path: Path, pace: float, quiet: str) -> None:
    after = disturbed(tmp_path / "after", 1, pace)
    for asked in (None, gate(speedup=0.9)):
        found = check(judged(before, after, asked), "latency")
        assert found.finding == "inconclusive"
        assert found.sentence.endswith(
            "; it was disturbed after; that decides nothing: measure again, on a quiet machine or for longer"
        )
        twin = judged(before, usual(tmp_path / f"quiet {asked is None}", 1, latency=latency(1, pace)), asked)
        assert check(twin, "latency").finding == quiet
    assert judged(after, after).status == "pass"  # the very same measurement differs in nothing


def same_artifact(seed: int = 0) -> dict[str, Any]:
    return {"artifact": {"path": "m", "sha256": f"{seed:064x}", "bytes": 10_000, "format": "onnx"}}


@pytest.mark.parametrize("pace", [0.5, 1.0, 1.04, 1.5])
def test_what_did_not_change_is_shown_however_disturbed(before: Path, tmp_path: Path, pace: float) -> None:
    after = disturbed(tmp_path / "after", 1, pace, **same_artifact())
    found = judged(before, after)
    said = check(found, "latency, batch 1")
    assert (found.status, said.finding) == ("pass", "shown")
    assert "artifact and packages are those of before" in said.sentence
    # A gate that limits latency asks all the same; and what is another artifact stays open.
    assert judged(before, after, gate(speedup=0.9)).status == "inconclusive"
    assert judged(before, disturbed(tmp_path / "other", 1, pace)).status == "inconclusive"


def wild(seed: int, int8: float, base: float) -> dict[str, np.ndarray]:
    """A baseline that took a thousand times as long in every second round."""
    timed = latency(seed, int8, base)
    timed[BASE] = timed[BASE] * np.where(np.arange(60) % 2, 1000.0, 1.0)[:, None]
    return timed


def test_an_interval_that_wide_is_said_to_tell_nothing(before: Path, tmp_path: Path) -> None:
    found = check(judged(before, usual(tmp_path / "after", 1, latency=wild(1, 0.9, 4.0))), "latency")
    assert found.finding == "inconclusive"
    assert found.sentence.startswith("too disturbed to tell: the interval reaches beyond twice as slow; by the clock ")
    assert "e+" not in found.sentence
    assert "no slowdown beyond" not in found.sentence
    asked = judged(before, tmp_path / "after", gate(speedup=0.9))
    assert check(asked, "latency").sentence.startswith("whether the speedup reaches 0.9 is too disturbed to tell: ")
    twin = check(judged(before, usual(tmp_path / "quiet", 1, latency=latency(1, 0.9))), "latency")
    assert twin.finding == "pass"


def test_a_baseline_that_moved_too_far_is_no_yardstick(before: Path, tmp_path: Path) -> None:
    found = check(judged(before, usual(tmp_path / "after", 1, latency=latency(1, 1.0, base=12.0))), "latency")
    assert found.finding == "inconclusive"
    assert found.sentence.startswith("too disturbed to tell: fp32@torch, which did not change, is itself 3.0")


def test_the_removal_of_what_had_failed_loses_nothing(tmp_path: Path) -> None:
    failed = {"fp16@onnxruntime": {"status": "failed", "reason": "it says why"}}
    three = {BASE: RIGHT, INT8: lose(3, gain=3), "fp16@onnxruntime": RIGHT}
    timed = latency(0, 1.0) | {"fp16@onnxruntime": paces(2, 2.0)}
    after = usual(tmp_path / "after", 1)
    found = judged(usual(tmp_path / "before", outcomes=three, latency=timed, changed=failed), after)
    assert found.status == "pass"
    said = check(found, "status", "fp16@onnxruntime")
    assert (said.finding, said.before, said.after) == ("shown", "failed", "missing")
    twin = judged(usual(tmp_path / "measured", outcomes=three, latency=timed), after)
    assert (twin.status, check(twin, "status", "fp16@onnxruntime").finding) == ("fail", "fail")


@pytest.mark.parametrize("name", ["outcomes.npz", "latency.npz"])
def test_samples_that_are_missing_leave_their_part_open(before: Path, tmp_path: Path, name: str) -> None:
    after = usual(tmp_path / "after", 1)
    (before / name).unlink()
    found = judged(before, after)
    assert found.status == "inconclusive"
    assert f"there is no {name} beside the baseline report" in found.reasons[0]


@pytest.mark.parametrize("name", ["outcomes.npz", "latency.npz"])
def test_samples_of_another_report_are_not_believed(before: Path, tmp_path: Path, name: str) -> None:
    after = usual(tmp_path / "after", 1, outcomes=outcomes(lose(200)), latency=latency(1, 2.0))
    (after / name).write_bytes((before / name).read_bytes())
    found = judged(before, after)
    assert f"{name} beside the candidate report does not belong to it" in str(found)
    assert found.status != "pass"


def test_damaged_samples_are_an_error(before: Path, tmp_path: Path) -> None:
    after = usual(tmp_path / "after", 1)
    content = (after / "outcomes.npz").read_bytes()
    (after / "outcomes.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"outcomes.npz: cannot be read"):
        judged(before, after)


def test_a_candidate_that_is_gone_is_a_regression_and_a_new_one_is_shown(before: Path, tmp_path: Path) -> None:
    after = usual(
        tmp_path / "after",
        1,
        outcomes={BASE: RIGHT, "fp16@onnxruntime": RIGHT},
        latency={BASE: paces(1, 4.0), "fp16@onnxruntime": paces(2, 2.0)},
    )
    found = judged(before, after)
    assert found.status == "fail"
    assert found.reasons == (f"{INT8}: it is not in the candidate report",)
    assert check(found, "status", "fp16@onnxruntime").finding == "shown"


@pytest.mark.parametrize(("status", "verdict"), [("failed", "fail"), ("built", "inconclusive")])
def test_a_candidate_that_no_longer_comes_out_is_not_passed(
    before: Path, tmp_path: Path, status: str, verdict: str
) -> None:
    change = {INT8: {"status": status, "reason": "it says why"}}
    found = judged(before, usual(tmp_path / "after", 1, changed=change))
    assert found.status == verdict
    assert f"it was measured and is {status}: it says why" in found.reasons[0]


def test_a_larger_artifact_is_a_regression_beyond_one_percent(before: Path, tmp_path: Path) -> None:
    for size, finding in ((10_100, "pass"), (10_200, "fail"), (9_000, "pass")):
        artifact = {"path": "m", "sha256": "f" * 64, "bytes": size, "format": "onnx"}
        after = usual(tmp_path / str(size), 1, changed={INT8: {"artifact": artifact}})
        assert check(judged(before, after), "size").finding == finding


def test_less_of_the_requested_precision_is_a_regression(before: Path, tmp_path: Path) -> None:
    precision = {"requested": "int8", "delivered": {"int8": 0.8, "fp32": 0.2}}
    found = judged(before, usual(tmp_path / "after", 1, changed={INT8: {"precision": precision}}))
    assert check(found, "precision").finding == "fail"
    assert "int8 in 80 % of the multiply-accumulates" in found.reasons[0]


def test_a_gate_alone_decides_and_the_rest_is_shown(before: Path, tmp_path: Path) -> None:
    artifact = {"path": "m", "sha256": "f" * 64, "bytes": 99_000, "format": "onnx"}
    after = usual(tmp_path / "after", 1, outcomes=outcomes(lose(20)), changed={INT8: {"artifact": artifact}})
    assert judged(before, after).status == "fail"
    found = judged(before, after, gate(max_drop=0.05))
    assert found.status == "pass"
    assert {check(found, s).finding for s in ("size", "latency", "precision")} == {"shown"}
    assert judged(before, after, gate(max_drop=0.005)).status == "fail"
    assert judged(before, after, gate(max_drop=0.018)).status == "inconclusive"


def test_a_gates_speedup_is_the_candidate_reports_over_the_baseline_reports(before: Path, tmp_path: Path) -> None:
    after = usual(tmp_path / "after", 1, latency=latency(1, 0.5))
    found = judged(before, after, gate(speedup=1.8))
    assert found.status == "pass"
    assert check(found, "latency").sentence.startswith("speedup at batch 1 is 2.0")
    assert check(found, "latency", BASE).finding == "shown"
    assert judged(before, after, gate(speedup=2.5)).status == "fail"
    missing = Gate(batch=16, speedup=SpeedupLimit(min=1.0))
    assert judged(before, after, missing).status == "inconclusive"


def test_a_gate_that_asks_for_what_is_not_there_is_not_met(before: Path, tmp_path: Path) -> None:
    asked = Gate(metrics={"top5": MetricLimit(max_drop=0.01)})
    found = judged(before, usual(tmp_path / "after", 1), asked)
    assert found.status == "inconclusive"
    assert "the gate asks for top5, which the baseline report does not hold" in found.reasons[0]


def test_two_recipes_are_named(before: Path, tmp_path: Path) -> None:
    after = usual(tmp_path / "after", 1)
    text = (after / "report.json").read_text().replace('"name": "demo"', '"name": "other"')
    (after / "report.json").write_text(text)
    assert judged(before, after).notes == ("The reports are of two recipes, demo and other.",)


def opened_anew(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A candidate and its baseline, equal but for where their memory lies in each of 6 openings."""
    rng = np.random.default_rng(seed)
    lies, rounds = rng.lognormal(0, 0.01, (2, 6)).repeat(10, axis=1), rng.lognormal(0, 0.01, (2, 60))
    own, base = (lies * rounds)[:, :, None] * rng.lognormal(0, 0.01, (2, 60, 5))
    return own, base


def test_openings_are_what_a_comparison_draws_from() -> None:
    """Rounds of one opening resemble each other: taken as rounds of their own, they know too much."""
    openings = ((10,) * 6, (10,) * 6)
    wider = 0
    for seed in range(0, 16, 2):
        before, after = opened_anew(seed), opened_anew(seed + 1)
        known, unknown = (change_between(before, after, BASE, found) for found in (openings, ((), ())))
        assert (known.raw.degrees, known.best.degrees) == (5, 5)
        (low, high), (tight_low, tight_high) = known.best.interval(0.99), unknown.best.interval(0.99)
        assert low <= 1 <= high
        wider += high / low > tight_high / tight_low
    assert wider >= 7


def reopened(folder: Path, seed: int, pace: float) -> Path:
    """A run whose candidates were opened 6 times."""
    rounds = {BASE: paces(seed, 4.0), INT8: paces(seed + 100, pace)}
    run = usual(folder, seed, latency=rounds)
    np.savez(run / "latency.npz", **{f"{n}/1": timed for n, timed in rounds.items()}, **{"openings/1": [10] * 6})
    return run


def test_a_slowdown_of_every_opening_is_a_regression(tmp_path: Path) -> None:
    found = judged(reopened(tmp_path / "one", 0, 1.0), reopened(tmp_path / "other", 1, 1.5))
    assert check(found, "latency").finding == "fail"


def test_openings_of_other_rounds_are_not_believed(tmp_path: Path) -> None:
    one, other = (reopened(tmp_path / name, seed, 1.0) for seed, name in enumerate("ab"))
    with np.load(other / "latency.npz") as stored:
        arrays = dict(stored)
    np.savez(other / "latency.npz", **{**arrays, "openings/1": [10] * 5})
    found = check(judged(one, other), "latency")
    assert found.finding == "inconclusive"
    assert "openings of other rounds" in found.sentence


@pytest.mark.parametrize(
    ("after_db", "said"),
    [(26.2, "SQNR, 7.1 dB further from the baseline's"), (34.0, "SQNR, 0.7 dB closer to"), (33.5, None), (None, None)],
)
def test_outputs_that_moved_are_shown_and_not_judged(before: Path, after_db: float | None, said: str | None) -> None:
    def with_sqnr(db: float | None) -> Report:
        found = read_report(before)
        numbers = Numerics(max_abs=0.1, cosine=0.99, sqnr_db=db)
        changed = (c.model_copy(update={"numerics": {"logits": numbers}}) for c in found.candidates)
        return found.model_copy(update={"candidates": tuple(changed)})

    found = compare(with_sqnr(33.3), with_sqnr(after_db), baseline_folder=before, candidate_folder=before)
    assert found.status == "pass"
    shown = [c for c in found.checks if c.candidate == INT8 and c.subject == "output 'logits'"]
    assert [c.finding for c in shown] == (["shown"] if said else [])
    assert all(said and c.sentence.startswith(said) for c in shown)
