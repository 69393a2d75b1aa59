"""Numbers as a person reads them."""

# ruff: noqa: RUF001 (reports are typeset: minus sign, multiplication sign, en dash)

from __future__ import annotations

import pytest

from optimizer.report import format as fmt


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0713, "0.0713"),
        (0.2214, "0.221"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.7, "1,235"),
        (0.0, "0"),
        (-2.5, "−2.50"),
    ],
)
def test_three_digits_are_significant(value: float, text: str) -> None:
    assert fmt.significant(value) == text


def test_milliseconds_carry_their_unit_unless_the_column_has_it() -> None:
    assert fmt.ms(12.345) == "12.3 ms"
    assert fmt.ms(12.345, unit=False) == "12.3"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (324_871, "325 kB"),
        (999_600, "1.00 MB"),
        (25_757_220_864, "25.8 GB"),
    ],
)
def test_sizes_are_decimal(value: int, text: str) -> None:
    assert fmt.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2, "0.20 s"), (14.26, "14.3 s"), (99.96, "1 min 40 s"), (125, "2 min 05 s"), (7260, "2 h 01 min")],
)
def test_durations_keep_two_units_at_most(value: float, text: str) -> None:
    assert fmt.seconds(value) == text


def test_only_all_of_it_is_100_percent() -> None:
    assert [fmt.part(f) for f in (1.0, 0.99996, 0.9974, 0.0026, 0.00001, 0.0)] == [
        "100 %", "> 99.9 %", "99.7 %", "0.3 %", "< 0.1 %", "0 %",
    ]  # fmt: skip


def test_differences_have_a_sign_unless_they_are_nothing() -> None:
    assert fmt.points(-0.00185) == "−0.18 pp"
    assert fmt.points(0.005) == "+0.50 pp"
    assert fmt.points(-0.0) == fmt.points(0.0) == fmt.points(-0.000001) == "0.00 pp"


def test_an_interval_says_a_shared_unit_once() -> None:
    assert fmt.interval((0.9639, 0.9886), fmt.percent) == "96.39 to 98.86 %"
    assert fmt.interval((1.2, 2.5), fmt.ratio) == "1.20× to 2.50×"
    assert fmt.interval((900, 2000), fmt.size) == "900 B to 2.00 kB"


def test_ratios_keep_three_digits() -> None:
    assert [fmt.ratio(v) for v in (0.613, 3.105, 12.44, 140.2, 0.0012)] == [
        "0.61×",
        "3.10×",
        "12.4×",
        "140×",
        "0.0012×",
    ]


def test_a_p_value_is_never_zero() -> None:
    assert fmt.p_value(0.0) == "p < 0.001"
    assert fmt.p_value(0.0213) == "p = 0.021"


@pytest.mark.parametrize(
    "metric", ["top1", "top_5", "f1", "macro_f1", "mean_iou", "wer", "word_error_rate", "accuracy"]
)
def test_shares_read_in_percent(metric: str) -> None:
    assert fmt.metric_value(metric)(0.5) == "50.00 %"
    assert fmt.metric_delta(metric)(-0.01) == "−1.00 pp"


@pytest.mark.parametrize("metric", ["spearman", "perplexity", "loss", "mse", "topology", "stop"])
def test_other_metrics_stand_as_they_are(metric: str) -> None:
    assert fmt.metric_value(metric)(0.5) == "0.5000"
    assert fmt.metric_delta(metric)(-0.01) == "−0.0100"


def test_delivered_shares_are_ordered_and_leave_nothing_out_that_is_there() -> None:
    assert [s[:2] for s in fmt.shares({"fp32": 0.0026, "int8": 0.9974, "fp16": 0.0})] == [
        ("int8", "99.7 %"),
        ("fp32", "0.3 %"),
    ]


def test_words() -> None:
    assert fmt.count(1, "step") == "1 step"
    assert fmt.count(2300, "sample") == "2,300 samples"
    assert fmt.joined(["a"]) == "a"
    assert fmt.joined(["a", "b", "c"]) == "a, b and c"
    assert fmt.short(None) == "–"
    assert fmt.decibel(None) == "–"
