"""A comparison as text for a terminal, Markdown for a pull request, JUnit XML for CI."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from optimizer.compare.result import Check, Comparison

_COLUMNS = ("candidate", "what", "before", "after", "found")
# Characters that XML 1.0 cannot carry, not even escaped. Source: XML 1.0, production 2.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def headline(comparison: Comparison, has_gate: bool) -> str:
    """Return the verdict in one line."""
    broken = [check.subject.startswith("output '") for check in comparison.checks if check.finding == "fail"]
    missed = "an output is not finite" if broken and all(broken) else "the gate is not met"
    words = {
        "pass": "the gate is met" if has_gate else "no regression found beyond the limits stated below",
        "fail": missed if has_gate else "regression",
        "inconclusive": "cannot be decided with these samples",
    }
    return f"{comparison.status}: {words[comparison.status]}"


def render_text(comparison: Comparison, has_gate: bool) -> str:
    """Return the verdict, its reasons, then every check with its sentence."""
    reasons = [reason.replace("\n", "\n  ") for reason in comparison.reasons]
    lines = [headline(comparison, has_gate), *(f"  {reason}" for reason in reasons)]
    lines += [f"note: {note}" for note in comparison.notes]
    rows = [_COLUMNS, *(_cells(check) for check in comparison.checks)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines.append("")
    for row, check in zip(rows, [None, *comparison.checks], strict=True):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"{cells}  {_sentence(check, comparison) if check else ''}".rstrip())
    return "\n".join(lines) + "\n"


def render_markdown(comparison: Comparison, has_gate: bool) -> str:
    """Return a heading with the verdict, its reasons, and a table."""
    lines = [f"## {_plain(headline(comparison, has_gate))}", ""]
    lines += [f"- {_plain(reason)}" for reason in (*comparison.reasons, *comparison.notes)]
    lines += ["", f"| {' | '.join(_COLUMNS)} | |", f"|{'---|' * (len(_COLUMNS) + 1)}"]
    for check in comparison.checks:
        lines.append(f"| {' | '.join(_plain(text) for text in (*_cells(check), _sentence(check, comparison)))} |")
    return "\n".join(lines) + "\n"


def render_junit(comparison: Comparison) -> str:
    """Return JUnit XML, a case for each check: what fails is a failure, what cannot be decided one of that type."""
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite", {"name": "optimize compare"})
    for check in comparison.checks:
        # A dot would make CI servers see packages in names such as `int8-99.99`.
        place = {"classname": _clean(check.candidate.replace(".", "_")), "name": _clean(check.subject), "time": "0"}
        case = ET.SubElement(suite, "testcase", place)
        text = _clean(f"{check.before} -> {check.after}: {check.sentence}")
        if check.finding == "shown":
            ET.SubElement(case, "skipped", {"message": text})
        elif check.finding != "pass":
            kind = "regression" if check.finding == "fail" else "inconclusive"
            ET.SubElement(case, "failure", {"message": text, "type": kind}).text = text
    if not any(check.finding != "shown" for check in comparison.checks):
        case = ET.SubElement(suite, "testcase", {"classname": "compare", "name": "verdict", "time": "0"})
        ET.SubElement(case, "failure", {"message": _clean(comparison.reasons[0]), "type": "inconclusive"})
    for element in (root, suite):
        counts = {"tests": "testcase", "failures": "testcase/failure", "skipped": "testcase/skipped"}
        element.attrib.update({name: str(len(suite.findall(path))) for name, path in counts.items()} | {"errors": "0"})
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _cells(check: Check) -> tuple[str, ...]:
    return check.candidate, check.subject, check.before, check.after, check.finding


def _sentence(check: Check, comparison: Comparison) -> str:
    """What a row says: nothing again that stands above it as a reason."""
    is_reason = check.finding == comparison.status and check.finding != "pass"
    return "as said above" if is_reason else " ".join(check.sentence.split())


def _plain(text: str) -> str:
    """Keep a text from ending its table cell or starting markup."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
