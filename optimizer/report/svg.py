"""Inline SVG without a plotting library: elements, axes, and labels that keep clear of each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

# The advance of a monospaced glyph at the plots' font size of 11 px.
GLYPH = 6.65
LINE = 13.0

Element = ET.Element


def canvas(name: str, width: float, height: float, title: str, description: str) -> Element:
    """Return an accessible picture; `name` is unique on its page."""
    attributes = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-labelledby": f"{name}-t {name}-d"}
    root = ET.Element("svg", {**attributes, "style": f"width:{width:g}px"})
    ET.SubElement(root, "title", {"id": f"{name}-t"}).text = title
    ET.SubElement(root, "desc", {"id": f"{name}-d"}).text = description
    return root


def draw(parent: Element, tag: str, kind: str, **attributes: float | str) -> Element:
    """Add an element of a CSS class; numbers are rounded to a tenth of a pixel."""
    written = {k.replace("_", "-"): v if isinstance(v, str) else f"{round(v, 1):g}" for k, v in attributes.items()}
    return ET.SubElement(parent, tag, {"class": kind, **written})


def text(parent: Element, kind: str, x: float, y: float, content: str) -> Element:
    """Add a line of text whose baseline is at `y`."""
    element = draw(parent, "text", kind, x=x, y=y)
    element.text = content
    return element


def mark(parent: Element, kind: str, tip: str) -> Element:
    """Add a group that says `tip` when pointed at: natively, and nicer with the script."""
    group = ET.SubElement(parent, "g", {"class": f"mark {kind}".strip(), "tabindex": "0"})
    ET.SubElement(group, "title").text = tip
    return group


def render(root: Element) -> str:
    """Return the markup; every text and attribute is escaped."""
    return ET.tostring(root, encoding="unicode")


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    wanted: int = 6  # about so many ticks

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values inside the axis."""
        if self.log:
            return self._log_ticks()
        rough = (self.high - self.low) / self.wanted
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    def label(self, tick: float) -> str:
        """Return a tick's text: as many decimals as tell the ticks apart."""
        if self.log:
            return f"{tick:g}" if 1e-4 <= tick < 1e6 else f"{tick:.0e}"
        ticks = self.ticks()
        step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(tick) or 1.0
        decimals = next((d for d in range(8) if abs(round(step, d) - step) < step * 1e-6), 8)
        return f"{tick:,.{decimals}f}".replace("-", "\u2212")

    def _log_ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**k for k in decades for m in steps if self.low <= m * 10.0**k <= self.high]
            if len(found) <= self.wanted + 2:
                break
        return found


def latency_axis(values: list[float], start: float, end: float) -> Axis:
    """Return an axis from zero; logarithmic when the values span more than a factor of ten."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 10:
        return Axis(low / 1.25, high * 1.25, start, end, log=True)
    return Axis(0.0, high * 1.08 or 1.0, start, end)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0


@dataclass(slots=True)
class Labels:
    """Places labels one after the other, each where it hides least."""

    taken: list[Box] = field(default_factory=list)  # points and labels: never covered while there is room
    lines: list[Box] = field(default_factory=list)  # crossed where it cannot be helped

    def place(self, x: float, y: float, content: str, frame: Box) -> tuple[Box, bool]:
        """Return the label's box, inside `frame` while there is room, and whether it needs a line back to its point."""
        width = len(content) * GLYPH
        best: tuple[float, Box, bool] | None = None
        for rank, (dx, dy, is_far) in enumerate(_offsets(width)):
            box = Box(x + dx, y + dy, x + dx + width, y + dy + LINE)
            outside = width * LINE - box.overlap(frame)
            hidden = 6 * sum(map(box.overlap, self.taken)) + sum(map(box.overlap, self.lines))
            cost = rank * 3.0 + 8 * outside + hidden
            if best is None or cost < best[0]:
                best = (cost, box, is_far)
        assert best is not None
        self.taken.append(best[1])
        return best[1], best[2]


def _offsets(width: float) -> list[tuple[float, float, bool]]:
    """Offsets of a label's corner from its point, the preferred first: right, left, above, below, then farther."""
    gap, half, up = 10.0, width / 2, -LINE
    near = [(dx, dy) for dx in (gap, -gap - width) for dy in (-LINE / 2, up - 3, 3.0)]
    near += [(-half, up - 9), (-half, 9.0)]
    found = [(dx, dy, False) for dx, dy in near]
    for step in (18.0, 32.0, 46.0, 60.0, 80.0, 100.0):
        for dx in (gap + 4, -gap - 4 - width, -half):
            found += [(dx, up - step, True), (dx, step, True)]
    return found
