"""Accuracy against latency: intervals, the Pareto front as a step line, baseline and recommended marked."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.report import format as fmt
from optimizer.report import svg
from optimizer.results import CandidateReport, Report

WIDTH, HEIGHT = 760.0, 400.0
_LEFT, _TOP, _BOTTOM, _RIGHT = 66.0, 18.0, 46.0, 18.0
_GUTTER = 190.0
_LONG_NAME, _MANY = 28, 14


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate in the plot; without `latency` it was built and stands in the margin."""

    number: int
    name: str
    kind: str
    value: float
    value_ci95: tuple[float, float]
    latency: float | None
    latency_ci95: tuple[float, float]

    @property
    def marked(self) -> str:
        """What is said of it besides its name."""
        return {"base": "baseline", "best": "recommended"}.get(self.kind, "")


@dataclass(frozen=True, slots=True)
class Plot:
    """The picture, and whether its labels are the numbers of the table of candidates."""

    markup: str
    is_numbered: bool
    is_log: bool
    has_margin: bool


def scatter(report: Report, metric: str, batch: str) -> Plot | None:
    """Draw `metric` against p50 latency at `batch`; None where fewer than two candidates were measured."""
    points = _points(report, metric, batch)
    timed = [p for p in points if p.latency is not None]
    if len(timed) < 2:
        return None
    untimed = [p for p in points if p.latency is None]
    numbered = len(points) > _MANY or any(len(p.name) > _LONG_NAME for p in points)
    right = WIDTH - _RIGHT - (_GUTTER if untimed else 0)
    x = svg.latency_axis([v for p in timed for v in (p.latency or 0.0, *p.latency_ci95)], _LEFT, right)
    y = _value_axis(points, metric)
    description = "; ".join(_tip(p, metric, batch).replace("\n", ", ") for p in points)
    title = f"{metric} against p50 latency at batch {batch}"
    root = svg.canvas("scatter", WIDTH, HEIGHT, title, description)
    _axes(root, x, y, metric, batch)
    _front(root, [p for p in timed if p.name in report.pareto], x, y, lower=report.metrics.get(metric) == "lower")
    if untimed:
        _margin_heading(root, right)
    labels = svg.Labels(svg.Box(_LEFT, 2, WIDTH, HEIGHT - _BOTTOM))
    placed = [(p, x.at(p.latency or 0.0)) for p in timed] + [(p, right + 22.0) for p in untimed]
    labels.taken += [svg.Box(px - 6, y.at(p.value) - 6, px + 6, y.at(p.value) + 6) for p, px in placed]
    for p, px in placed:
        _error_bars(root, p, px, x, y)
    # The recommended one and the baseline get the best places for their labels.
    for p, px in sorted(placed, key=lambda item: ("best", "base").index(item[0].kind) if item[0].marked else 2):
        _point(root, p, (px, y.at(p.value)), _tip(p, metric, batch), (labels, numbered))
    return Plot(svg.render(root), numbered, x.log, bool(untimed))


def _points(report: Report, metric: str, batch: str) -> list[Point]:
    base = report.candidate(report.baseline)
    before = (base.latency_ms or {}).get(batch) if base else None
    found = []
    for number, c in enumerate(report.candidates, 1):
        value, timed = c.accuracy.get(metric), (c.latency_ms or {}).get(batch)
        if value is None or (c.status == "measured" and timed is None):
            continue
        kind = "best" if c.name in report.recommended.values() else "base" if c.name == report.baseline else "other"
        p50 = timed.p50 if timed else None
        spread = _latency_interval(c, batch, before.p50 if before else None) or (p50 or 0.0, p50 or 0.0)
        found.append(Point(number, c.name, kind if timed else "built", value.value, value.ci95, p50, spread))
    return found


def _latency_interval(c: CandidateReport, batch: str, baseline_p50: float | None) -> tuple[float, float] | None:
    """Return the latencies that the interval of the speedup stands for, at the baseline's p50."""
    speedup = (c.speedup or {}).get(batch)
    if speedup is None or baseline_p50 is None or speedup.ci95[0] <= 0:
        return None
    return baseline_p50 / speedup.ci95[1], baseline_p50 / speedup.ci95[0]


def _value_axis(points: list[Point], metric: str) -> svg.Axis:
    low = min(v for p in points for v in (p.value, *p.value_ci95))
    high = max(v for p in points for v in (p.value, *p.value_ci95))
    pad = (high - low) * 0.08 or abs(high) * 0.01 or 0.01
    return svg.Axis(low - pad, high + pad, HEIGHT - _BOTTOM, _TOP)


def _axes(root: svg.Element, x: svg.Axis, y: svg.Axis, metric: str, batch: str) -> None:
    ticks = [t for t in y.ticks(5) if not fmt.is_share(metric) or 0 <= t <= 1 + 1e-9]
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)] or [0.01]
    for tick in ticks:
        svg.draw(root, "line", "grid", x1=_LEFT, x2=x.end, y1=y.at(tick), y2=y.at(tick))
        svg.text(root, "tick end", _LEFT - 8, y.at(tick) + 4, _tick_label(tick, min(steps), metric))
    for tick in x.ticks(8):
        svg.draw(root, "line", "grid", x1=x.at(tick), x2=x.at(tick), y1=y.start, y2=y.end)
        svg.text(root, "tick mid", x.at(tick), y.start + 17, fmt.significant(tick, 3 if tick >= 100 else 2).rstrip("."))
    svg.draw(root, "path", "axis", d=f"M{_LEFT:g} {y.end:g}V{y.start:g}H{x.end:g}", fill="none")
    scale = ", log scale" if x.log else ""
    svg.text(root, "name mid", (_LEFT + x.end) / 2, HEIGHT - 8, f"p50 latency at batch {batch}, ms{scale} (lower is better)")
    unit = ", %" if fmt.is_share(metric) else ""
    label = svg.text(root, "name mid", 0, 0, f"{metric}{unit}")
    label.set("transform", f"translate(14 {(y.start + y.end) / 2:g}) rotate(-90)")


def _tick_label(tick: float, step: float, metric: str) -> str:
    scaled, step = (tick * 100, step * 100) if fmt.is_share(metric) else (tick, step)
    decimals = next((d for d in range(6) if abs(round(step, d) - step) < step * 1e-6), 6)
    return f"{scaled:.{decimals}f}".replace("-", fmt.MINUS)


def _front(root: svg.Element, front: list[Point], x: svg.Axis, y: svg.Axis, *, lower: bool) -> None:
    """Between two points of the front the better value costs the slower point's latency: a step."""
    ordered = sorted(front, key=lambda p: (p.latency or 0.0, p.value if lower else -p.value))
    if not ordered:
        return
    worst = y.end if lower else y.start
    path = f"M{x.at(ordered[0].latency or 0.0):.1f} {worst:.1f}V{y.at(ordered[0].value):.1f}"
    for p in ordered[1:]:
        path += f"H{x.at(p.latency or 0.0):.1f}V{y.at(p.value):.1f}"
    svg.draw(root, "path", "front", d=f"{path}H{x.end:.1f}", fill="none")


def _margin_heading(root: svg.Element, right: float) -> None:
    svg.draw(root, "line", "split", x1=right + 6, x2=right + 6, y1=_TOP, y2=HEIGHT - _BOTTOM)
    svg.text(root, "name", right + 12, HEIGHT - _BOTTOM + 17, "built, not timed here")


def _error_bars(root: svg.Element, p: Point, px: float, x: svg.Axis, y: svg.Axis) -> None:
    low, high = (y.at(v) for v in p.value_ci95)
    path = f"M{px - 3:.1f} {low:.1f}h6M{px - 3:.1f} {high:.1f}h6M{px:.1f} {low:.1f}V{high:.1f}"
    if p.latency is not None:
        left, right = (x.at(v) for v in p.latency_ci95)
        if right - left > 1:
            py = y.at(p.value)
            path += f"M{left:.1f} {py - 3:.1f}v6M{right:.1f} {py - 3:.1f}v6M{left:.1f} {py:.1f}H{right:.1f}"
    svg.draw(root, "path", f"error {p.kind}", d=path, fill="none")


def _point(
    root: svg.Element, p: Point, at: tuple[float, float], tip: str, labelling: tuple[svg.Labels, bool]
) -> None:
    labels, numbered = labelling
    px, py = at
    group = svg.mark(root, p.kind, tip)
    svg.draw(group, "circle", "reach", cx=px, cy=py, r=14.0)
    if p.kind == "base":
        svg.draw(group, "rect", "shape", x=px - 5, y=py - 5, width=10.0, height=10.0)
    elif p.kind == "best":
        svg.draw(group, "circle", "ring", cx=px, cy=py, r=9.0)
        svg.draw(group, "circle", "shape", cx=px, cy=py, r=5.0)
    else:
        svg.draw(group, "circle", "shape", cx=px, cy=py, r=4.5)
    said = str(p.number) if numbered else p.name
    content = f"{said} {p.marked}".strip()
    box, is_far = labels.place(px, py, content)
    if is_far:
        near = min(max(px, box.left), box.right)
        svg.draw(group, "line", "leader", x1=px, y1=py, x2=near, y2=box.bottom if box.bottom < py else box.top)
    svg.text(group, "label", box.left, box.bottom - 3, content)


def _tip(p: Point, metric: str, batch: str) -> str:
    form = fmt.metric_value(metric)
    lines = [f"{p.name} ({p.marked})" if p.marked else p.name]
    lines.append(f"{metric} {form(p.value)}, 95 % interval {fmt.interval(p.value_ci95, form)}")
    lines.append("built, not timed here" if p.latency is None else f"p50 {fmt.ms(p.latency)} at batch {batch}")
    return "\n".join(lines)
