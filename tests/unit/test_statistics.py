"""Intervals and tests against scipy, published examples and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from optimizer.errors import MeasurementError
from optimizer.measure.bootstrap import Ratio, _draw, block_length, interleaved_ratio, median, medians, separate_ratio
from optimizer.measure.statistics import (
    Z,
    _resampled_means,
    bootstrap_mean,
    mcnemar,
    paired_share_difference,
    percentiles,
    sign_flip,
    student_quantile,
    wilson,
)


def paired(gained: int, lost: int, samples: int, right: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of two models: `gained` right only after, `lost` right only before, `right` right in both."""
    first, second = np.zeros(samples), np.zeros(samples)
    first[:right] = second[:right] = 1
    second[right : right + gained] = 1
    first[right + gained : right + gained + lost] = 1
    return first, second


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_quantiles_are_those_of_the_normal_distribution(level: float) -> None:
    assert Z[level] == pytest.approx(stats.norm.ppf(0.5 + level / 2), abs=1e-12)


@pytest.mark.parametrize(("successes", "samples"), [(0, 10), (1, 10), (10, 10), (8103, 10_000), (450, 897)])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_wilson_is_scipys(successes: int, samples: int, level: float) -> None:
    expected = stats.binomtest(successes, samples).proportion_ci(level, method="wilson")
    assert wilson(successes, samples, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (3, 3), (6, 16), (0, 8), (120, 160), (700, 650)])
def test_mcnemar_is_scipys_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_of_many_discordant_samples_neither_overflows_nor_takes_long() -> None:
    assert mcnemar(20_000, 20_000) == 1.0
    assert 0 < mcnemar(19_500, 20_500) < 1e-5


@pytest.mark.parametrize(
    ("gained", "lost", "samples", "low", "high"),
    [
        (6, 16, 161, -0.1240, -0.0054),  # Fagerland, Lydersen, Laake 2014: complete response, Cavo et al. 2012
        (1, 7, 21, -0.5172, -0.0260),  # the same: airway hyper-responsiveness, Bentur et al. 2009
    ],
)
def test_paired_difference_has_the_published_interval(
    gained: int, lost: int, samples: int, low: float, high: float
) -> None:
    assert paired_share_difference(*paired(gained, lost, samples)) == pytest.approx((low, high), abs=5e-5)


def test_paired_difference_is_symmetric_and_within_bounds() -> None:
    for gained, lost, samples in [(0, 0, 5), (5, 0, 5), (0, 5, 5), (2, 3, 5), (1, 0, 1)]:
        first, second = paired(gained, lost, samples)
        low, high = paired_share_difference(first, second)
        assert -1 <= low <= second.mean() - first.mean() <= high <= 1
        assert paired_share_difference(second, first) == pytest.approx((-high, -low), abs=1e-9)


def test_few_samples_with_equal_answers_do_not_prove_that_nothing_changed() -> None:
    few, many = paired_share_difference(*paired(0, 0, 20)), paired_share_difference(*paired(0, 0, 10_000))
    assert few.high == pytest.approx(Z[0.95] ** 2 / (20 + Z[0.95] ** 2), abs=1e-9)
    assert few.high > 0.15
    assert 0 < many.high < 0.0005


@pytest.mark.parametrize(
    ("samples", "lost", "gained"), [(897, 0.003, 0.001), (897, 0.001, 0.0), (100, 0.05, 0.02), (2000, 0.02, 0.02)]
)
def test_paired_difference_covers_the_truth(samples: int, lost: float, gained: float) -> None:
    rng = np.random.default_rng(11)
    trials, covered, covered_by_wald = 600, 0, 0
    for down, up in rng.multinomial(samples, [lost, gained, 1 - lost - gained], trials)[:, :2]:
        first, second = paired(int(up), int(down), samples)
        low, high = paired_share_difference(first, second)
        covered += low <= gained - lost <= high
        half = Z[0.95] * (second - first).std() / np.sqrt(samples)
        covered_by_wald += abs((second - first).mean() - (gained - lost)) <= half
    assert covered / trials >= 0.93
    if samples * (lost + gained) < 1:  # the twin: an interval that trusts equal answers
        assert covered_by_wald / trials < 0.7


def test_bootstrap_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(3).gamma(1.5, 2.0, 400)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = expected.high - expected.low
    assert bootstrap_mean(values) == pytest.approx((expected.low, expected.high), abs=0.07 * width)
    assert bootstrap_mean(values) == bootstrap_mean(values)


def test_bootstrap_of_a_mean_covers_the_truth() -> None:
    rng = np.random.default_rng(5)
    hits = {0.95: 0, 0.99: 0}
    for _ in range(200):
        values = rng.gamma(2.0, 1.0, 120)
        for level in hits:
            low, high = bootstrap_mean(values, level)
            hits[level] += low <= 2.0 <= high
    assert 0.90 <= hits[0.95] / 200 <= 0.985
    assert hits[0.99] > hits[0.95]


def test_equal_values_have_an_interval_without_width() -> None:
    assert bootstrap_mean(np.full(9, 0.25)) == (0.25, 0.25)
    with pytest.raises(MeasurementError, match="1 sample has no interval"):
        bootstrap_mean(np.array([0.5]))


@pytest.mark.parametrize("degrees", [1, 2, 3, 8, 9, 29])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_student_quantiles_are_scipys(degrees: int, level: float) -> None:
    assert student_quantile(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-9)


@pytest.mark.parametrize("count", [2, 5, 10])
def test_few_values_have_an_interval_that_covers(count: int) -> None:
    rng = np.random.default_rng(count)
    covered = 0
    for _ in range(400):
        low, high = bootstrap_mean(rng.normal(1.0, 2.0, count))
        covered += low <= 1.0 <= high
    assert covered / 400 > 0.92
    resampled = percentiles(_resampled_means(rng.normal(1.0, 2.0, count)), 0.95)
    few = bootstrap_mean(rng.normal(1.0, 2.0, count))
    assert few.high - few.low > 0
    assert resampled.high - resampled.low > 0


def test_sign_flips_agree_with_scipys_permutation_test() -> None:
    differences = np.random.default_rng(8).normal(0.12, 1.0, 150)
    expected = stats.permutation_test(
        (differences, np.zeros(150)),
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
        vectorized=False,
        n_resamples=1500,
        rng=np.random.default_rng(2),
    ).pvalue
    assert sign_flip(differences) == pytest.approx(expected, abs=0.04)
    assert sign_flip(np.zeros(20)) == 1.0
    assert sign_flip(np.full(60, 0.3)) < 0.001


def test_sign_flips_do_not_depend_on_the_unit() -> None:
    differences = np.random.default_rng(8).normal(0.3, 1.0, 40)
    assert sign_flip(differences * 1e-12) == sign_flip(differences)


@pytest.mark.parametrize("shape", [(30, 11), (7, 4), (1, 5), (25, 1), (40, 100)])
def test_resampled_medians_are_those_of_the_repeated_rounds(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    samples = rng.gamma(5.0, 1.0, shape)
    drawn = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), 50)
    expected = [np.median(np.repeat(samples, counts, axis=0)) for counts in drawn]
    np.testing.assert_allclose(medians(samples, drawn), expected, rtol=1e-12)


def test_resampled_medians_of_many_samples_are_close() -> None:
    rng = np.random.default_rng(0)
    samples = rng.gamma(5.0, 1.0, (120, 100))
    drawn = rng.multinomial(120, np.full(120, 1 / 120), 60)
    expected = np.array([np.median(np.repeat(samples, counts, axis=0)) for counts in drawn])
    found = medians(samples, drawn)
    # One of 4096 cells: small beside the spread of the medians themselves.
    assert np.abs(found - expected).max() < 0.15 * expected.std()


def rounds(rng: np.random.Generator, pace: float, drift: np.ndarray, calls: int) -> np.ndarray:
    """Latencies whose rounds share a state of the machine."""
    return pace * drift[:, None] * rng.lognormal(0.0, 0.03, (len(drift), calls))


def test_drawing_rounds_covers_the_truth_and_drawing_single_calls_does_not() -> None:
    rng = np.random.default_rng(21)
    trials, by_rounds, by_calls = 30, 0, 0
    for _ in range(trials):
        base = rounds(rng, 3.0, rng.lognormal(0.0, 0.06, 24), 6)
        candidate = rounds(rng, 2.0, rng.lognormal(0.0, 0.06, 24), 6)
        low, high = interleaved_ratio(base, candidate).interval()
        by_rounds += low <= 1.5 <= high
        single, drawn = base.reshape(-1, 1), _draw(base.size, 0)
        low, high = percentiles(medians(single, drawn) / medians(candidate.reshape(-1, 1), drawn), 0.95)
        by_calls += low <= 1.5 <= high
    assert by_rounds / trials >= 0.88
    assert by_calls / trials < 0.85


def test_the_same_rounds_on_both_sides_cancel_drift() -> None:
    rng = np.random.default_rng(22)
    drift = np.linspace(1.0, 1.4, 40)
    base, candidate = rounds(rng, 3.0, drift, 5), rounds(rng, 2.0, drift, 5)
    (low, high), (loose_low, loose_high) = (f(base, candidate).interval() for f in (interleaved_ratio, separate_ratio))
    assert low <= 1.5 <= high
    assert high - low < 0.5 * (loose_high - loose_low)


def test_ratio_is_seeded_and_its_level_widens_it() -> None:
    rng = np.random.default_rng(2)
    base, candidate = rng.lognormal(0, 0.1, (30, 5)), rng.lognormal(-0.2, 0.1, (30, 5))
    ratio = interleaved_ratio(base, candidate)
    assert ratio.interval() == interleaved_ratio(base, candidate).interval()
    assert ratio.value == pytest.approx(np.median(base) / np.median(candidate))
    assert ratio.interval(0.99)[0] < ratio.interval()[0] < ratio.value < ratio.interval()[1] < ratio.interval(0.99)[1]


def test_a_ratio_of_ratios_cancels_what_both_share() -> None:
    ratio = Ratio(3.0, np.array([2.0, 4.0])).over(Ratio(1.5, np.array([1.0, 2.0])))
    assert ratio.value == 2.0
    assert ratio.draws.tolist() == [2.0, 2.0]


def test_a_planted_slowdown_is_found_and_none_is_found_in_equals() -> None:
    rng = np.random.default_rng(4)
    found = false = 0
    for _ in range(25):
        drift = rng.lognormal(0, 0.02, 60)
        base, same, slow = (rounds(rng, pace, drift, 8) for pace in (1.0, 1.0, 1.05))
        found += interleaved_ratio(slow, base).interval(0.99)[0] > 1.01
        false += interleaved_ratio(same, base).interval(0.99)[0] > 1.01
    assert found == 25
    assert false == 0


def autoregressive(rng: np.random.Generator, count: int, correlation: float, sd: float) -> np.ndarray:
    found = [rng.normal(0, sd)]
    for _ in range(count - 1):
        found.append(correlation * found[-1] + rng.normal(0, sd * np.sqrt(1 - correlation**2)))
    return np.array(found)


def test_rounds_that_resemble_the_one_before_are_drawn_in_runs() -> None:
    rng = np.random.default_rng(3)
    independent = [block_length(rng.normal(0, 1, 60)) for _ in range(50)]
    related = [block_length(autoregressive(rng, 60, 0.8, 1.0)) for _ in range(50)]
    assert np.median(independent) == 1
    assert 5 <= np.median(related) <= 12
    assert block_length(np.arange(5.0)) == 1  # too few to tell
    assert block_length(np.ones(60)) == 1


def test_drawn_runs_hold_as_many_rounds_and_every_round_as_often() -> None:
    drawn = _draw(23, 0, 5)
    assert (drawn.sum(axis=1) == 23).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(23), abs=0.1)


@pytest.mark.parametrize(("count", "correlation", "least"), [(5, 0.0, 0.96), (20, 0.0, 0.97), (60, 0.8, 0.92)])
def test_the_interval_that_judges_covers_with_few_rounds_and_with_related_ones(
    count: int, correlation: float, least: float
) -> None:
    rng = np.random.default_rng(count)
    trials, covered, by_percentiles = 40, 0, 0
    for _ in range(trials):
        shared = autoregressive(rng, count, 0.9, 0.03)
        base, own = (
            np.exp((shared + autoregressive(rng, count, correlation, 0.01))[:, None] + rng.normal(0, 0.01, (count, 5)))
            for _ in range(2)
        )
        low, high = interleaved_ratio(own, base).interval(0.99)
        covered += low <= 1 <= high
        drawn = _draw(count, 0)
        low, high = percentiles(medians(own, drawn) / medians(base, drawn), 0.99)
        by_percentiles += low <= 1 <= high
    assert covered / trials >= least
    if correlation or count == 5:  # the twin: plain percentiles of single rounds
        assert by_percentiles < covered


def test_a_median_has_an_interval_that_covers_it() -> None:
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(60):
        low, high = median(rounds(rng, 3.0, rng.lognormal(0, 0.05, 30), 4)).interval()
        covered += low <= 3.0 <= high
    assert covered >= 54


def test_few_blocks_widen_the_interval() -> None:
    draws = np.random.default_rng(1).lognormal(0, 0.02, 2000)
    many, few = Ratio(1.0, draws).interval(0.99), Ratio(1.0, draws, 4).interval(0.99)
    assert few.low < many.low < 1 < many.high < few.high
    assert Ratio(1.0, draws, 9).over(Ratio(1.0, draws, 4)).degrees == 4
    assert Ratio(2.0, draws, 9).inverse().value == 0.5
