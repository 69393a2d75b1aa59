"""A limit on latency is not decided by rounds that were disturbed; the interval holds what did not hold still."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.gate import judge, overall, recommend
from optimizer.measure.bootstrap import DRIFT, interleaved_ratio, median, widened
from optimizer.measure.series import LatencySession, Series, counted
from optimizer.recipe.model import Gate, MetricLimit, SpeedupLimit
from optimizer.results import CandidateReport, Latency, MetricDelta, Precision, Speedup

GATE = Gate(metrics={"top1": MetricLimit(max_drop=0.01)}, speedup=SpeedupLimit(min=1.1))
BETTER: Any = {"top1": "higher"}


def candidate(
    name: str, *, disturbed: bool = False, unstable: str | None = None, speedup: float = 2.0, drop: float = 0.0
) -> CandidateReport:
    timed = Latency(p50=1.0, p90=1.0, p99=1.0, mean=1.0, samples=300, warmup=1, stable=unstable is None).model_copy(
        update={"disturbed": disturbed, "disturbed_rounds": 41 * disturbed, "rounds": 60, "unstable": unstable}
    )
    delta = MetricDelta(value=-drop, ci95=(-drop - 0.001, -drop + 0.001), test="t", p_value=0.5)
    return CandidateReport(
        name=name,
        variant="int8",
        runtime="onnxruntime",
        device="cpu",
        status="measured",
        precision=Precision(requested="int8"),
        accuracy_delta={"top1": delta},
        latency_ms={"1": timed},
        speedup={"1": Speedup(value=speedup, ci95=(0.9 * speedup, 1.1 * speedup))},
    )


@pytest.mark.parametrize("speedup", [2.0, 0.5])
def test_a_disturbed_latency_neither_passes_nor_fails(speedup: float) -> None:
    base, own = (candidate(name, disturbed=True, speedup=speedup) for name in ("fp32@torch", "int8@onnxruntime"))
    causes = ("waited for a processor in 41 of 60 rounds",)
    verdict = judge(own, GATE, "1", BETTER, base, causes)
    assert verdict.status == "inconclusive"
    (disturbed,) = verdict.disturbed
    assert (disturbed.candidates, disturbed.rounds, disturbed.disturbed_rounds, disturbed.causes) == (
        ("fp32@torch", "int8@onnxruntime"),
        60,
        41,
        causes,
    )
    speedup_alone, accuracy, sentence = verdict.reasons
    assert speedup_alone.endswith("at least 1.1 is needed")
    assert accuracy.startswith("top1 changed by")
    assert verdict.own_reasons == (speedup_alone, accuracy)
    assert sentence == disturbed.sentence
    assert sentence == (
        "The speedup decides nothing: 41 of the 60 rounds behind the latency of fp32@torch and int8@onnxruntime were "
        "disturbed (waited for a processor in 41 of 60 rounds). Quieten the machine or raise measure.seconds, and "
        "measure again, with --remeasure"
    )
    assert overall([own.model_copy(update={"verdict": verdict})], GATE).status == "inconclusive"
    assert recommend([own.model_copy(update={"verdict": verdict})], "fp32@torch", GATE, "1") == {}


def test_a_quiet_latency_passes_and_fails() -> None:
    """The twin."""
    base = candidate("fp32@torch")
    for speedup, status in ((2.0, "pass"), (0.5, "fail")):
        verdict = judge(candidate("int8@onnxruntime", speedup=speedup), GATE, "1", BETTER, base)
        assert (verdict.status, verdict.disturbed) == (status, ())
        assert verdict.own_reasons == verdict.reasons


def judged(*own: CandidateReport, base: CandidateReport) -> list[CandidateReport]:
    return [c.model_copy(update={"verdict": judge(c, GATE, "1", BETTER, base)}) for c in own]


def test_a_run_says_once_what_was_disturbed_behind_all_of_its_candidates() -> None:
    base = candidate("fp32@torch", disturbed=True)
    own = [candidate(name, disturbed=True) for name in ("a@onnxruntime", "b@onnxruntime")]
    verdict = overall(judged(*own, base=base), GATE)
    assert verdict.status == "inconclusive"
    assert [reason.partition(":")[0] for reason in verdict.reasons] == [
        "a@onnxruntime",
        "b@onnxruntime",
        "The speedup decides nothing",
    ]
    (disturbed,) = verdict.disturbed
    assert disturbed.candidates == ("fp32@torch", "a@onnxruntime", "b@onnxruntime")
    assert "the latency of fp32@torch, a@onnxruntime and b@onnxruntime were disturbed. Quieten" in disturbed.sentence


def test_rounds_that_differ_are_told_apart() -> None:
    """The twin: another share of disturbed rounds is another sentence."""
    base, own = candidate("fp32@torch", disturbed=True), candidate("a@onnxruntime", disturbed=True)
    assert own.latency_ms is not None
    fewer = own.model_copy(update={"latency_ms": {"1": own.latency_ms["1"].model_copy(update={"rounds": 50})}})
    verdict = overall(judged(fewer, base=base), GATE)
    assert [(one.candidates, one.rounds) for one in verdict.disturbed] == [
        (("fp32@torch",), 60),
        (("a@onnxruntime",), 50),
    ]


def test_a_run_that_fails_or_passes_is_decided_whatever_was_disturbed() -> None:
    base = candidate("fp32@torch")
    shaken = candidate("a@onnxruntime", disturbed=True, drop=0.1)
    assert overall(judged(shaken, base=base), GATE).disturbed == ()
    quiet = candidate("b@onnxruntime")
    verdict = overall(judged(shaken, quiet, base=base), GATE)
    assert (verdict.status, verdict.disturbed) == ("pass", ())


def test_a_broken_accuracy_fails_however_disturbed_the_latency_is() -> None:
    own = candidate("int8@onnxruntime", disturbed=True, drop=0.1)
    verdict = judge(own, GATE, "1", BETTER)
    assert verdict.status == "fail"
    assert verdict.reasons[0].startswith("top1 changed by -0.1000")


def test_a_gate_without_a_speedup_asks_nothing_of_the_latency() -> None:
    own = candidate("int8@onnxruntime", disturbed=True)
    assert judge(own, GATE.model_copy(update={"speedup": None}), "1", BETTER).status == "pass"


def test_what_did_not_hold_still_is_named_and_judged_by_its_interval() -> None:
    base, own = candidate("fp32@torch", unstable="the medians of the rounds spread by 12%"), candidate("int8@o")
    verdict = judge(own, GATE, "1", BETTER, base)
    assert verdict.status == "pass"
    said = "which includes that latency did not hold still (fp32@torch: the medians of the rounds spread by 12%)"
    assert any(said in reason for reason in verdict.reasons)


def stepping(step: float, seed: int = 0, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Two candidates of equal pace, the first by `step` faster in the first half and slower in the second."""
    rng = np.random.default_rng(seed)
    sides = [np.exp(rng.normal(0, noise, 60)[:, None] + rng.normal(0, 0.01, (60, 5))) for _ in range(2)]
    sides[0] *= np.where(np.arange(60) < 30, np.exp(-step / 2), np.exp(step / 2))[:, None]
    return sides[0], sides[1]


def test_the_interval_holds_what_each_half_of_a_session_gave() -> None:
    """A step of 10 % in one opening: the draws alone know one level in the middle, which the candidate never had."""
    missed = 0
    for seed in range(20):
        above, below = stepping(0.1, seed)
        ratio = interleaved_ratio(above, below)
        first = np.median(above[:30]) / np.median(below[:30])
        second = np.median(above[30:]) / np.median(below[30:])
        for level in (0.95, 0.99):
            low, high = ratio.interval(level)
            assert low <= min(first, second)
            assert max(first, second) <= high
        low, high = widened(ratio, 0.95)
        missed += low > first or high < second
    assert missed >= 10  # the twin: without the halves


def test_halves_that_agree_widen_nothing_and_drift_of_both_cancels() -> None:
    above, below = stepping(0.0, noise=0.01)
    assert interleaved_ratio(above, below).halves is None
    common = np.linspace(0.8, 1.3, 60)[:, None]
    assert median(above * common).halves is not None
    assert interleaved_ratio(above * common, below * common).halves is None
    above, below = stepping(2.5 * DRIFT, noise=0.01)
    assert interleaved_ratio(above, below).halves is not None


def test_halves_go_through_ratios_of_ratios() -> None:
    above, below = stepping(0.2, noise=0.01)
    ratio = interleaved_ratio(above, below)
    assert ratio.halves is not None
    inverse = ratio.inverse().halves
    assert inverse is not None
    assert inverse == pytest.approx((1 / ratio.halves.high, 1 / ratio.halves.low))
    still = interleaved_ratio(*stepping(0.0, noise=0.01))
    assert ratio.over(still).halves == pytest.approx((ratio.halves.low / still.value, ratio.halves.high / still.value))
    assert still.over(still).halves is None


def test_a_step_leaves_a_limit_between_its_levels_open() -> None:
    above, below = stepping(0.2)
    own, base = Series(below / 1.1, 1), Series(above, 1)
    found = LatencySession("base", {"base": {1: base}, "own": {1: own}}).speedup("own", 1)
    assert found is not None
    assert found.ci95[0] < 1.1 < found.ci95[1]


def test_quiet_rounds_of_few_openings_do_not_count_alone() -> None:
    """24 quiet rounds in two of six openings: what differs between openings would be seen by one degree of freedom."""
    openings = (12,) * 6
    few = tuple(n >= 24 for n in range(72))
    assert counted(few, 72, openings).all()
    many = tuple(n % 12 >= 4 for n in range(72))  # the twin: as many, four in each
    assert counted(many, 72, openings).sum() == 24
    assert counted(few, 72).sum() == 24  # of one opening they do
    series = Series(np.ones((72, 2)), 1, few, openings)
    assert series.detail()["disturbed"]
    assert series.counted_openings == openings
