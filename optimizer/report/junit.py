"""JUnit XML for CI: a test case for each candidate and limit of the gate, and one for the report's verdict."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from optimizer.report.limits import held
from optimizer.report.title import fallen
from optimizer.report.view import headline
from optimizer.results import CandidateReport, Report, Verdict

# Characters that XML 1.0 cannot carry, not even escaped. Source: XML 1.0, production 2.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Report) -> str:
    """Return JUnit XML: a broken limit is a failure, an undecided one a failure of type `inconclusive`.

    A candidate that failed is an error; one that was only built is skipped, with the sentence of what it needs.
    """
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite", {"name": _clean(report.recipe.name)})
    if report.created:
        suite.set("timestamp", _clean(report.created.removesuffix("Z")))
    properties = ET.SubElement(suite, "properties")
    about = (("recipe.sha256", report.recipe.sha256), ("baseline", report.baseline), ("command", report.command))
    for name, value in about:
        ET.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    case = _case(suite, report, "report", "verdict")
    if nothing := fallen(report):
        _problem(case, "error", "failed", "\n".join([nothing, *report.verdict.reasons]))
    else:
        _verdict_case(case, report.verdict, headline(report).title)
    for candidate in report.candidates:
        _candidate_cases(suite, report, candidate)
    _count(suite)
    root.attrib.update({k: suite.attrib[k] for k in ("tests", "failures", "errors", "skipped", "time")})
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _candidate_cases(suite: ET.Element, report: Report, candidate: CandidateReport) -> None:
    if candidate.status == "failed":
        _problem(_case(suite, report, candidate.name, "build"), "error", "failed", candidate.reason or "failed")
        return
    if candidate.status == "built":
        case = _case(suite, report, candidate.name, "measure")
        _problem(case, "skipped", None, candidate.reason or "built, not executable here")
        return
    for limit in held(report, candidate):
        case = _case(suite, report, candidate.name, limit.limit.text)
        if limit.outcome != "held":
            kind = "limit" if limit.outcome == "broken" else "inconclusive"
            _problem(case, "failure", kind, f"{limit.outcome}: {limit.text}")
    _verdict_case(_case(suite, report, candidate.name, "verdict"), candidate.verdict, candidate.name)


def _verdict_case(case: ET.Element, verdict: Verdict | None, title: str) -> None:
    if verdict is None or verdict.status == "pass":
        return
    reasons = list(verdict.reasons) or [title]
    _problem(case, "failure", "gate" if verdict.status == "fail" else "inconclusive", "\n".join(reasons))


def _case(suite: ET.Element, report: Report, subject: str, name: str) -> ET.Element:
    # A dot would make CI servers see packages in names such as `int8-99.99`.
    place = f"{report.recipe.name.replace('.', '_')}.{subject.replace('.', '_')}"
    return ET.SubElement(suite, "testcase", {"classname": _clean(place), "name": _clean(name), "time": "0"})


def _problem(case: ET.Element, tag: str, kind: str | None, text: str) -> None:
    message = _clean(text)
    element = ET.SubElement(case, tag, {"message": message.splitlines()[0] if message else ""})
    if kind:
        element.set("type", kind)
    element.text = message


def _count(suite: ET.Element) -> None:
    cases = suite.findall("testcase")
    found = {"tests": len(cases)}
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        found[name] = sum(case.find(tag) is not None for case in cases)
    suite.attrib.update({name: str(number) for name, number in found.items()})
    suite.set("time", "0")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
