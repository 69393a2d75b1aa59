"""Verdicts on intervals: held with the whole of it, broken with the whole of it, else not decided."""

from __future__ import annotations

from typing import Any

import pytest

from optimizer.gate import judge, overall, pareto, recommend
from optimizer.recipe.model import Gate, MetricLimit, SpeedupLimit
from optimizer.results import CandidateReport, Latency, MetricDelta, MetricValue, Precision, Speedup, Verdict

BETTER: Any = {"top1": "higher", "mean_absolute_error": "lower"}


def gate(max_drop: float | None = None, speedup: float | None = None, metric: str = "top1") -> Gate:
    return Gate(
        metrics={} if max_drop is None else {metric: MetricLimit(max_drop=max_drop)},
        speedup=None if speedup is None else SpeedupLimit(min=speedup),
    )


def candidate(
    name: str = "int8@onnxruntime",
    *,
    p50: float | None = 1.0,
    top1: float = 0.9,
    delta: tuple[float, float, float] | None = None,
    metric: str = "top1",
    speedup: tuple[float, float, float] | None = None,
    status: Any = "measured",
    device: str = "cpu",
    verdict: Any = None,
) -> CandidateReport:
    return CandidateReport(
        name=name,
        variant=name.split("@", maxsplit=1)[0],
        runtime=name.split("@")[1],
        device=device,
        status=status,
        precision=Precision(requested="int8"),
        accuracy={"top1": MetricValue(value=top1, samples=100, ci95=(0.8, 1.0))},
        accuracy_delta={}
        if delta is None
        else {metric: MetricDelta(value=delta[1], ci95=(delta[0], delta[2]), test="t", p_value=0.5)},
        latency_ms=None
        if p50 is None
        else {"1": Latency(p50=p50, p90=p50, p99=p50, mean=p50, samples=9, warmup=1, stable=True)},
        speedup=None if speedup is None else {"1": Speedup(value=speedup[1], ci95=(speedup[0], speedup[2]))},
        verdict=None if verdict is None else Verdict(status=verdict, reasons=("because",)),
    )


@pytest.mark.parametrize(
    ("delta", "status"),
    [
        ((-0.009, -0.004, 0.001), "pass"),
        ((-0.010, -0.004, 0.001), "pass"),  # the bound itself is allowed
        ((-0.011, -0.004, 0.003), "inconclusive"),
        ((-0.050, -0.010, 0.030), "inconclusive"),
        ((-0.050, -0.030, -0.010), "inconclusive"),
        ((-0.050, -0.030, -0.011), "fail"),
        ((0.020, 0.030, 0.040), "pass"),
    ],
)
def test_a_drop_is_judged_with_its_whole_interval(delta: tuple[float, float, float], status: str) -> None:
    verdict = judge(candidate(delta=delta), gate(max_drop=0.01), "1", BETTER)
    assert verdict.status == status
    assert f"{delta[1]:+.4f} (95 % interval {delta[0]:+.4f} to {delta[2]:+.4f})" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("delta", "status"),
    [((-0.5, -0.3, -0.1), "pass"), ((0.02, 0.03, 0.04), "fail"), ((-0.01, 0.005, 0.02), "inconclusive")],
)
def test_where_lower_is_better_a_rise_is_what_is_limited(delta: tuple[float, float, float], status: str) -> None:
    limit = gate(max_drop=0.01, metric="mean_absolute_error")
    verdict = judge(candidate(delta=delta, metric="mean_absolute_error"), limit, "1", BETTER)
    assert verdict.status == status
    assert "rise" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("speedup", "status"),
    [
        ((1.10, 1.3, 1.5), "pass"),
        ((1.05, 1.3, 1.5), "inconclusive"),
        ((0.9, 1.0, 1.09), "fail"),
        (None, "inconclusive"),
    ],
)
def test_a_speedup_is_judged_with_its_whole_interval(speedup: Any, status: str) -> None:
    assert judge(candidate(speedup=speedup), gate(speedup=1.1), "1", BETTER).status == status


def test_a_speedup_at_another_batch_decides_nothing() -> None:
    verdict = judge(candidate(speedup=(2.0, 2.1, 2.2)), gate(speedup=1.1), "16", BETTER)
    assert verdict.status == "inconclusive"
    assert verdict.reasons == ("no speedup was measured at batch 16",)


def test_a_metric_that_was_not_measured_decides_nothing() -> None:
    assert judge(candidate(), gate(max_drop=0.01), "1", BETTER).status == "inconclusive"


def test_one_broken_limit_fails_and_stands_first() -> None:
    both = candidate(delta=(-0.02, 0.0, 0.02), speedup=(0.8, 0.9, 1.0))
    verdict = judge(both, gate(max_drop=0.01, speedup=1.1), "1", BETTER)
    assert verdict.status == "fail"
    assert verdict.reasons[0].startswith("speedup at batch 1 is 0.90")
    assert "cannot decide" in verdict.reasons[1]


def test_without_a_gate_every_candidate_passes() -> None:
    assert judge(candidate(), None, "1", BETTER).status == "pass"


BASE = candidate("fp32@torch", p50=3.0)
PASSING = candidate("fp16@onnxruntime", p50=2.0, verdict="pass")
FASTER = candidate("int8@onnxruntime", p50=1.0, verdict="fail")
ON_GPU = candidate("fp16@tensorrt", p50=0.5, device="cuda:0", verdict="pass")
BUILT = candidate("int8@tensorrt", p50=None, status="built")


def test_the_fastest_that_passes_is_recommended_per_device() -> None:
    found = recommend([BASE, PASSING, FASTER, ON_GPU, BUILT], "fp32@torch", gate(max_drop=0.01), "1")
    assert found == {"cpu": "fp16@onnxruntime", "cuda:0": "fp16@tensorrt"}


def test_with_a_gate_the_baseline_is_not_recommended_and_without_one_it_may_be() -> None:
    slow = candidate("fp16@onnxruntime", p50=9.0, verdict="pass")
    assert recommend([BASE, FASTER], "fp32@torch", gate(max_drop=0.01), "1") == {}
    assert recommend([BASE, slow], "fp32@torch", None, "1") == {"cpu": "fp32@torch"}


@pytest.mark.parametrize(
    "others",
    [
        [candidate("int8@onnxruntime", p50=None, status="failed")],
        [BUILT],
        [ON_GPU.model_copy(update={"verdict": Verdict(status="fail")})],
        [],
    ],
)
def test_a_baseline_without_a_rival_on_its_device_has_won_nothing(others: list[CandidateReport]) -> None:
    assert recommend([BASE, *others], "fp32@torch", None, "1") == {}
    slow = candidate("fp16@onnxruntime", p50=9.0, verdict="pass")
    assert recommend([BASE, *others, slow], "fp32@torch", None, "1") == {"cpu": "fp32@torch"}  # the twin


def test_without_a_gate_it_is_said_that_nothing_but_the_baseline_was_measured() -> None:
    said = "Nothing but the baseline could be measured here."
    alone, beside = overall([BASE, BUILT], None), overall([BASE, PASSING], None)
    assert (alone.status, beside.status) == ("pass", "pass")
    assert alone.reasons == ("The recipe has no gate.", said)
    assert beside.reasons == ("The recipe has no gate.",)


def test_what_was_not_timed_at_that_batch_is_not_recommended() -> None:
    assert recommend([BASE, PASSING], "fp32@torch", None, "16") == {}


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        (["pass", "fail"], "pass"),
        (["fail", "fail"], "fail"),
        (["fail", "inconclusive"], "inconclusive"),
        (["inconclusive", "pass"], "pass"),
        ([], "inconclusive"),
    ],
)
def test_the_run_passes_if_one_passes_and_fails_if_all_fail(verdicts: list[str], status: str) -> None:
    judged = [candidate(f"v{i}@onnxruntime", verdict=v) for i, v in enumerate(verdicts)]
    verdict = overall([BASE, *judged, BUILT], gate(max_drop=0.01))
    assert verdict.status == status
    assert verdict.reasons
    assert overall([BASE, *judged], None).status == "pass"


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    points = [
        candidate("slow-best@a", p50=3.0, top1=0.95),
        candidate("fast-good@a", p50=1.0, top1=0.93),
        candidate("beaten@a", p50=2.0, top1=0.92),
        candidate("fastest-worst@a", p50=0.5, top1=0.70),
        candidate("equal@a", p50=1.0, top1=0.93),
        BUILT,
    ]
    found = pareto(points, "top1", "1", "higher")
    assert found == ("fastest-worst@a", "equal@a", "fast-good@a", "slow-best@a")
    assert pareto(points, None, "1", "higher") == ("fastest-worst@a",)
    assert "slow-best@a" not in pareto(points, "top1", "1", "lower")
    assert pareto(points, "top1", "16", "higher") == ()
