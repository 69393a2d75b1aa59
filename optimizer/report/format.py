"""Numbers as a person reads them: sensible digits, a unit on each, a true minus sign."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping

MINUS = "\u2212"
DASH = "\u2013"
TIMES = "\u00d7"
UNTOLD = "cannot be told"
_WIDEST = 100.0  # of a factor's interval, high over low

Form = Callable[[float], str]

# Metrics that report.json writes as fractions of 1 and that people read in percent.
_SHARES = {"accuracy", "precision", "recall", "iou", "miou", "dice", "wer", "cer", "map", "auc", "f1", "em"}
_SHARE_PHRASES = ("word_error_rate", "character_error_rate", "exact_match", "error_rate")


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, and all before the point; tiny and huge ones in E form."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 9:
        return _signed(f"{value:.{digits - 1}e}")
    rounded = round(value, max(0, digits - 1 - magnitude))  # 9.996 becomes 10.0: one digit fewer behind the point
    magnitude = math.floor(math.log10(abs(rounded)))
    return _signed(f"{rounded:,.{max(0, digits - 1 - magnitude)}f}")


def ms(value: float, unit: bool = True) -> str:
    """Return milliseconds, three significant digits."""
    return f"{significant(value)} ms" if unit else significant(value)


def seconds(value: float) -> str:
    """Return a duration: `0.21 s`, `14.3 s`, `2 min 05 s`."""
    if value < 99.95:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(count: float) -> str:
    """Return bytes in decimal units, three significant digits: 1 MB is 1,000,000 bytes."""
    value, unit = float(count), 0
    units = ("B", "kB", "MB", "GB", "TB")
    while value >= 999.5 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{significant(value)} {units[unit]}"


def percent(fraction: float, decimals: int = 2) -> str:
    """Return a fraction of 1 in percent."""
    return _signed(f"{fraction * 100:.{decimals}f} %")


def part(fraction: float) -> str:
    """Return a part of a whole in percent; only all of it is `100 %`, only none of it is `0 %`."""
    if fraction in (0.0, 1.0):
        return f"{fraction * 100:.0f} %"
    if fraction < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if fraction > 0.999 else f"{fraction * 100:.1f} %"


def points(difference: float) -> str:
    """Return a difference of two fractions in percentage points, with its sign."""
    return f"{_plus(difference * 100, 2)} pp"


def ratio(value: float) -> str:
    """Return a factor with a multiplication sign: three digits, never more than two decimals."""
    if value < 0.01:
        return f"{significant(value, 2)}{TIMES}"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}{TIMES}"


def rate(value: float) -> str:
    """Return items per second; the unit stands in the column's title."""
    return significant(value) if value < 1000 else f"{value:,.0f}"


def decibel(value: float | None) -> str:
    """Return an SQNR; null where the outputs are equal or the ratio is not defined."""
    return DASH if value is None else _signed(f"{value:.1f} dB")


def p_value(value: float) -> str:
    """Return a p-value, never `0`."""
    return "p < 0.001" if value < 0.001 else f"p = {significant(value, 2)}"


def interval(bounds: tuple[float, float], form: Form) -> str:
    """Return `low to high`; a unit that both share stands once, behind. Of a factor that may be any, only that."""
    if form is ratio and untold(bounds):
        return UNTOLD
    low, high = form(bounds[0]), form(bounds[1])
    value, space, unit = low.rpartition(" ")
    return f"{value} to {high}" if space and high.endswith(f" {unit}") else f"{low} to {high}"


def untold(bounds: tuple[float, float]) -> bool:
    """Whether the interval of a factor is so wide that it tells nothing: a hundredfold, or down to nothing."""
    return bounds[0] <= 0 or bounds[1] / bounds[0] > _WIDEST


def is_share(metric: str) -> bool:
    """Whether a metric is a fraction of 1 that reads in percent; an unknown one is shown as it stands."""
    words = metric.lower().replace("-", "_").split("_")
    if any(phrase in metric.lower() for phrase in _SHARE_PHRASES):
        return True
    top = (w for w in words if w.startswith("top"))
    return any(w in _SHARES for w in words) or any(w in {"top"} or w[3:].isdigit() for w in top)


def metric_value(metric: str) -> Form:
    """Return how a value of this metric is written."""
    return percent if is_share(metric) else _four_decimals


def metric_delta(metric: str) -> Form:
    """Return how a difference of this metric is written."""
    return points if is_share(metric) else _signed_decimals


def shares(delivered: Mapping[str, float]) -> tuple[tuple[str, str, float], ...]:
    """Return (precision, percent, fraction), largest first."""
    ordered = sorted(delivered.items(), key=lambda item: (-item[1], item[0]))
    told = ((name, f"at least {part(share)}" if name == "unknown" else part(share), share) for name, share in ordered)
    return tuple(row for row in told if row[2] > 0)


def moment(created: str) -> str:
    """Return an ISO 8601 time in UTC as `2026-11-21 19:55 UTC`; what is none as it stands."""
    try:
        at = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    utc = at.astimezone(datetime.UTC) if at.tzinfo else at
    return f"{utc:%Y-%m-%d %H:%M} UTC"


def short(digest: str | None) -> str:
    """Return the first eight digits of a key or digest."""
    return digest[:8] if digest else DASH


def count(number: int, noun: str) -> str:
    """Return `1 candidate`, `3 candidates`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def joined(words: list[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _four_decimals(value: float) -> str:
    return _signed(f"{value:.4f}") if abs(value) < 100 else significant(value, 5)


def _signed_decimals(value: float) -> str:
    return _plus(value, 4)


def _plus(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    # A difference of nothing has no sign.
    return text[1:] if float(text) == 0 else _signed(text)


def _signed(text: str) -> str:
    return text.replace("-", MINUS) if "e" not in text else text
