"""Row plots: latency percentiles per batch, and sizes."""

from __future__ import annotations

from optimizer.report import format as fmt
from optimizer.report import svg
from optimizer.results import CandidateReport, Report

WIDTH = 560.0
_ROW, _TOP, _BOTTOM = 22.0, 8.0, 40.0
_LONGEST = 30


def percentiles(report: Report, batch: str) -> str | None:
    """Draw p50, p90 and p99 of every measured candidate at one batch."""
    timed = [(c, t) for c in report.candidates if (t := (c.latency_ms or {}).get(batch)) is not None]
    if not timed:
        return None
    left, right, height = _frame([c for c, _ in timed], 176.0)
    axis = svg.latency_axis([v for _, t in timed for v in (t.p50, t.p99)], left, right)
    said = "; ".join(f"{c.name} {t.p50:g}, {t.p90:g}, {t.p99:g} ms" for c, t in timed)
    title = f"Latency percentiles at batch {batch}"
    root = svg.canvas(f"latency-{batch}", WIDTH, height, title, f"p50, p90, p99: {said}")
    _axis(root, axis, height, f"ms{', log scale' if axis.log else ''}: dot p50, tick p90, bar end p99")
    for row, (c, t) in enumerate(timed):
        y = _TOP + (row + 0.5) * _ROW
        p50, p90, p99 = (axis.at(v) for v in (t.p50, t.p90, t.p99))
        times = f"p50 {fmt.ms(t.p50)}\np90 {fmt.ms(t.p90)}\np99 {fmt.ms(t.p99)}"
        group = svg.mark(root, _kind(report, c), f"{c.name}, batch {batch}\n{times}\n{t.samples:,} samples")
        svg.draw(group, "rect", "reach", x=0.0, y=y - _ROW / 2, width=WIDTH, height=_ROW)
        svg.text(group, "label end", left - 10, y + 4, _shortened(c.name))
        svg.draw(
            group,
            "path",
            "error",
            d=f"M{p50:.1f} {y:g}H{p99:.1f}M{p90:.1f} {y - 4:g}v8M{p99:.1f} {y - 4:g}v8",
            fill="none",
        )
        svg.draw(group, "circle", "shape", cx=p50, cy=y, r=4.0)
        svg.text(group, "value end", WIDTH - 4, y + 4, " / ".join(fmt.ms(v, unit=False) for v in (t.p50, t.p90, t.p99)))
    return svg.render(root)


def sizes(report: Report) -> str | None:
    """Draw the size of every artifact, the baseline's as a line to compare with."""
    stored = [(c, c.artifact.bytes) for c in report.candidates if c.artifact is not None]
    if len(stored) < 2:
        return None
    left, right, height = _frame([c for c, _ in stored], 66.0)
    axis = svg.Axis(0.0, max(b for _, b in stored) * 1.04 or 1.0, left, right)
    said = "; ".join(f"{c.name} {fmt.size(b)}" for c, b in stored)
    root = svg.canvas("sizes", WIDTH, height, "Sizes", said)
    base = report.candidate(report.baseline)
    for row, (c, count) in enumerate(stored):
        y = _TOP + (row + 0.5) * _ROW
        group = svg.mark(root, _kind(report, c), f"{c.name}\n{fmt.size(count)} ({count:,} bytes)")
        svg.draw(group, "rect", "reach", x=0.0, y=y - _ROW / 2, width=WIDTH, height=_ROW)
        svg.text(group, "label end", left - 10, y + 4, _shortened(c.name))
        svg.draw(group, "rect", "shape", x=left, y=y - 5, width=max(axis.at(count) - left, 1.0), height=10.0)
        svg.text(group, "value end", WIDTH - 4, y + 4, fmt.size(count))
    bottom = height - _BOTTOM
    if base is not None and base.artifact is not None:
        at = axis.at(base.artifact.bytes)
        svg.draw(root, "line", "split", x1=at, x2=at, y1=_TOP, y2=bottom + 4)
        svg.text(root, "tick mid", at, bottom + 17, f"baseline {fmt.size(base.artifact.bytes)}")
    svg.draw(root, "line", "axis", x1=left, x2=left, y1=_TOP, y2=bottom)
    return svg.render(root)


def delivered(shares: tuple[tuple[str, str, float], ...]) -> str:
    """Draw the delivered precisions as one small bar; the text beside it says the same."""
    root = svg.Element("svg", {"viewBox": "0 0 96 8", "class": "shares", "aria-hidden": "true"})
    start = 0.0
    for name, _, fraction in shares:
        kind = f"share-{name if name in _DRAWN else 'other'}"
        svg.draw(root, "rect", kind, x=start, y=0.0, width=fraction * 96, height=8.0)
        start += fraction * 96
    return svg.render(root)


_DRAWN = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "int4")


def _frame(candidates: list[CandidateReport], values: float) -> tuple[float, float, float]:
    longest = min(max(len(c.name) for c in candidates), _LONGEST)
    return longest * svg.GLYPH + 14, WIDTH - values - 12, _TOP + len(candidates) * _ROW + _BOTTOM


def _axis(root: svg.Element, axis: svg.Axis, height: float, name: str) -> None:
    bottom = height - _BOTTOM
    for tick in axis.ticks():
        svg.draw(root, "line", "grid", x1=axis.at(tick), x2=axis.at(tick), y1=_TOP, y2=bottom)
        svg.text(root, "tick mid", axis.at(tick), bottom + 15, axis.label(tick))
    svg.draw(root, "line", "axis", x1=axis.start, x2=axis.end, y1=bottom, y2=bottom)
    svg.text(root, "name mid", WIDTH / 2, height - 6, name)


def _kind(report: Report, c: CandidateReport) -> str:
    if c.name in report.recommended.values():
        return "best"
    return "base" if c.name == report.baseline else "built" if c.status == "built" else "other"


def _shortened(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    # The target stays whole, and both ends of the variant tell candidates apart.
    variant, at, target = name.rpartition("@")
    keep = max((_LONGEST - len(at + target) - 1) // 2, 4)
    return f"{variant[:keep]}\u2026{variant[-keep:]}{at}{target}"
