"""Accuracy against latency: intervals, the Pareto front as a step line, the gate, baseline and recommended marked."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.report import format as fmt
from optimizer.report import svg
from optimizer.report.limits import limits
from optimizer.results import CandidateReport, Report

WIDTH, HEIGHT = 960.0, 430.0
_LEFT, _TOP, _BOTTOM, _RIGHT = 66.0, 18.0, 48.0, 24.0
_MARGIN_STEP = 16.0
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
    """The picture, and what its caption must explain."""

    markup: str
    is_numbered: bool
    has_margin: bool
    has_gate: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    """What every part of one plot is drawn with."""

    root: svg.Element
    metric: str
    batch: str
    x: svg.Axis
    y: svg.Axis
    labels: svg.Labels


def scatter(report: Report, metric: str, batch: str) -> Plot | None:
    """Draw `metric` against p50 latency at `batch`; None where fewer than two candidates were measured."""
    points = _points(report, metric, batch)
    timed = [p for p in points if p.latency is not None]
    if len(timed) < 2:
        return None
    untimed = [p for p in points if p.latency is None]
    is_numbered = len(points) > _MANY or any(len(p.name) > _LONG_NAME for p in points)
    names = {p.name: f"{p.number if is_numbered else p.name} {p.marked}".strip() for p in points}
    right = WIDTH - _RIGHT - _margin_width([names[p.name] for p in untimed])
    frame = _frame(points, metric, batch, right)
    _axes(frame)
    has_gate = _gate(frame, report)
    _front(frame, [p for p in timed if p.name in report.pareto], lower=report.metrics.get(metric) == "lower")
    if untimed:
        svg.draw(frame.root, "line", "split", x1=right + 8, x2=right + 8, y1=_TOP, y2=HEIGHT - _BOTTOM)
        svg.text(frame.root, "name", right + 14, HEIGHT - _BOTTOM + 17, "built, not timed here")
    placed = [(p, frame.x.at(p.latency or 0.0)) for p in timed]
    placed += [(p, right + 22.0 + k * _MARGIN_STEP) for k, p in enumerate(untimed)]
    for p, px in placed:
        _error_bars(frame, p, px)
        py = frame.y.at(p.value)
        frame.labels.taken.append(svg.Box(px - 7, py - 7, px + 7, py + 7))
    # The recommended one and the baseline get the best places for their labels.
    for p, px in sorted(placed, key=lambda item: {"best": 0, "base": 1}.get(item[0].kind, 2)):
        _point(frame, p, px, names[p.name])
    return Plot(svg.render(frame.root), is_numbered, bool(untimed), has_gate)


def _margin_width(names: list[str]) -> float:
    if not names:
        return 0.0
    return max(len(name) for name in names) * svg.GLYPH + len(names) * _MARGIN_STEP + 24


def _frame(points: list[Point], metric: str, batch: str, right: float) -> _Frame:
    latencies = [v for p in points if p.latency is not None for v in (p.latency, *p.latency_ci95)]
    x = svg.latency_axis(latencies, _LEFT, right)
    values = [v * _scale(metric) for p in points for v in (p.value, *p.value_ci95)]
    low, high = min(values), max(values)
    pad = (high - low) * 0.08 or abs(high) * 0.01 or 0.01
    y = svg.Axis(low - pad, high + pad, HEIGHT - _BOTTOM, _TOP)
    description = "; ".join(_tip(p, metric, batch).replace("\n", ", ") for p in points)
    root = svg.canvas(f"scatter-{metric}", WIDTH, HEIGHT, f"{metric} against p50 latency at batch {batch}", description)
    own = svg.Axis(y.low / _scale(metric), y.high / _scale(metric), y.start, y.end)
    return _Frame(root, metric, batch, x, own, svg.Labels())


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
    """Return the latencies that the interval of the speedup stands for, at the baseline's p50; None: cannot be told."""
    speedup = (c.speedup or {}).get(batch)
    if speedup is None or baseline_p50 is None or fmt.untold(speedup.ci95):
        return None
    return baseline_p50 / speedup.ci95[1], baseline_p50 / speedup.ci95[0]


def _scale(metric: str) -> float:
    return 100.0 if fmt.is_share(metric) else 1.0


def _axes(frame: _Frame) -> None:
    root, x, y = frame.root, frame.x, frame.y
    scale = _scale(frame.metric)
    shown = svg.Axis(y.low * scale, y.high * scale, y.start, y.end)  # in the unit of the labels
    for tick in shown.ticks():
        if scale == 1.0 or 0 <= tick <= 100:
            svg.draw(root, "line", "grid", x1=_LEFT, x2=x.end, y1=shown.at(tick), y2=shown.at(tick))
            svg.text(root, "tick end", _LEFT - 8, shown.at(tick) + 4, shown.label(tick))
    for tick in x.ticks():
        svg.draw(root, "line", "grid", x1=x.at(tick), x2=x.at(tick), y1=y.start, y2=y.end)
        svg.text(root, "tick mid", x.at(tick), y.start + 17, x.label(tick))
    svg.draw(root, "path", "axis", d=f"M{_LEFT:g} {y.end:g}V{y.start:g}H{x.end:g}", fill="none")
    kind = ", log scale" if x.log else ""
    name = f"p50 latency at batch {frame.batch}, ms{kind} (lower is better)"
    svg.text(root, "name mid", (_LEFT + x.end) / 2, HEIGHT - 8, name)
    label = svg.text(root, "name mid", 0, 0, f"{frame.metric}, %" if fmt.is_share(frame.metric) else frame.metric)
    label.set("transform", f"translate(14 {(y.start + y.end) / 2:g}) rotate(-90)")


def _gate(frame: _Frame, report: Report) -> bool:
    """Draw the gate's limits where they lie inside the plot."""
    base, x, y = report.candidate(report.baseline), frame.x, frame.y
    before = (base.latency_ms or {}).get(frame.batch) if base else None
    drawn = False
    for limit in limits(report):
        if limit.subject == "speedup" and before is not None and limit.batch == frame.batch:
            at = before.p50 / limit.bound
            if x.low < at < x.high:
                svg.draw(frame.root, "line", "gate", x1=x.at(at), x2=x.at(at), y1=y.start, y2=y.end)
                svg.text(frame.root, "gate-name name", x.at(at) + 5, y.start - 6, f"gate {fmt.ratio(limit.bound)}")
                drawn = True
        elif limit.subject == frame.metric and base is not None and frame.metric in base.accuracy:
            value = base.accuracy[frame.metric].value + (limit.bound if limit.lower_is_better else -limit.bound)
            if y.low < value < y.high:
                svg.draw(frame.root, "line", "gate", x1=x.start, x2=x.end, y1=y.at(value), y2=y.at(value))
                content = f"gate {fmt.metric_value(frame.metric)(value)}"
                svg.text(frame.root, "gate-name name end", x.end - 4, y.at(value) - 5, content)
                drawn = True
    return drawn


def _front(frame: _Frame, front: list[Point], *, lower: bool) -> None:
    """Between two points of the front the better value costs the slower point's latency: a step."""
    ordered: list[Point] = []
    for p in sorted(front, key=lambda p: (p.latency or 0.0, p.value if lower else -p.value)):
        # The front was found for one metric; what does not gain in this one has no step here.
        if not ordered or (p.value < ordered[-1].value if lower else p.value > ordered[-1].value):
            ordered.append(p)
    if not ordered:
        return
    corners = [(frame.x.at(p.latency or 0.0), frame.y.at(p.value)) for p in ordered]
    px, py = corners[0][0], frame.y.end if lower else frame.y.start
    path = f"M{px:.1f} {py:.1f}"
    for nx, ny in [*corners, (frame.x.end, corners[-1][1])]:
        path += f"H{nx:.1f}V{ny:.1f}"
        frame.labels.lines += [svg.Box(px, py - 2, nx, py + 2), svg.Box(nx - 2, min(py, ny), nx + 2, max(py, ny))]
        px, py = nx, ny
    svg.draw(frame.root, "path", "front", d=path, fill="none")


def _error_bars(frame: _Frame, p: Point, px: float) -> None:
    low, high = (frame.y.at(v) for v in p.value_ci95)
    path = f"M{px - 3:.1f} {low:.1f}h6M{px - 3:.1f} {high:.1f}h6M{px:.1f} {low:.1f}V{high:.1f}"
    frame.labels.lines.append(svg.Box(px - 2, high, px + 2, low))
    if p.latency is not None:
        left, right = (frame.x.at(v) for v in p.latency_ci95)
        if right - left > 1:
            py = frame.y.at(p.value)
            path += f"M{left:.1f} {py - 3:.1f}v6M{right:.1f} {py - 3:.1f}v6M{left:.1f} {py:.1f}H{right:.1f}"
    svg.draw(frame.root, "path", f"error {p.kind}", d=path, fill="none")


def _point(frame: _Frame, p: Point, px: float, name: str) -> None:
    py = frame.y.at(p.value)
    group = svg.mark(frame.root, p.kind, _tip(p, frame.metric, frame.batch))
    svg.draw(group, "circle", "reach", cx=px, cy=py, r=14.0)
    if p.kind == "base":
        svg.draw(group, "rect", "shape", x=px - 5, y=py - 5, width=10.0, height=10.0)
    else:
        if p.kind == "best":
            svg.draw(group, "circle", "ring", cx=px, cy=py, r=9.0)
        svg.draw(group, "circle", "shape", cx=px, cy=py, r=5.0)
    left, right = (_LEFT, frame.x.end) if p.latency is not None else (frame.x.end + 10, WIDTH)
    box, is_far = frame.labels.place(px, py, name, svg.Box(left, 2, right, HEIGHT - _BOTTOM))
    if is_far:
        near = min(max(px, box.left), box.right)
        svg.draw(group, "line", "leader", x1=px, y1=py, x2=near, y2=box.bottom if box.bottom < py else box.top)
    svg.text(group, "label", box.left, box.bottom - 3, name)


def _tip(p: Point, metric: str, batch: str) -> str:
    form = fmt.metric_value(metric)
    lines = [f"{p.name} ({p.marked})" if p.marked else p.name]
    lines.append(f"{metric} {form(p.value)}, 95 % interval {fmt.interval(p.value_ci95, form)}")
    lines.append("built, not timed here" if p.latency is None else f"p50 {fmt.ms(p.latency)} at batch {batch}")
    return "\n".join(lines)
