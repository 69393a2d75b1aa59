"""What a recommendation does not decide: candidates that are as fast as the one recommended, as far as was measured."""

from __future__ import annotations

from optimizer.report import format as fmt
from optimizer.report.limits import gate_batch
from optimizer.report.tables import worst_sqnr
from optimizer.results import CandidateReport, Report


def ties(report: Report) -> tuple[str, ...]:
    """Return a sentence per recommended candidate with those whose latency the session does not tell from its own.

    Two are not told apart where the 95 % intervals of their speedups overlap. The same file under another name is said
    to be that.
    """
    batch = gate_batch(report) or ""
    found = []
    for name in report.recommended.values():
        chosen = report.candidate(name)
        if chosen is None:
            continue
        equal = [c for c in report.candidates if c.name != name and _as_fast(c, chosen, batch)]
        if equal:
            said = "; ".join(_told(c, chosen) for c in equal)
            found.append(f"in latency {name} ({_sqnr(chosen)}) is not told apart from {said}")
    return tuple(found)


def same_files(report: Report) -> dict[str, str]:
    """Return, for each candidate that is the file of an earlier one in the same runtime, the name of that one.

    An option that left the graph as it was makes one: what differs between the two is chance.
    """
    first: dict[tuple[str, str, str], str] = {}
    found = {}
    for c in report.candidates:
        if c.artifact is None:
            continue
        name = first.setdefault((c.runtime, c.device, c.artifact.sha256), c.name)
        if name != c.name:
            found[c.name] = name
    return found


def one_file(report: Report) -> tuple[str, ...]:
    """Return a sentence for each file that several candidates of a runtime are."""
    groups: dict[str, list[str]] = {}
    for name, earlier in same_files(report).items():
        groups.setdefault(earlier, []).append(name)
    return tuple(
        f"{fmt.joined(names)} {'is' if len(names) == 1 else 'are'} the same file as {earlier}: the rest is chance"
        for earlier, names in groups.items()
    )


def _as_fast(other: CandidateReport, chosen: CandidateReport, batch: str) -> bool:
    passes = other.verdict is None or other.verdict.status == "pass"
    mine, its = (chosen.speedup or {}).get(batch), (other.speedup or {}).get(batch)
    if other.device != chosen.device or not passes or mine is None or its is None:
        return False
    return its.ci95[1] >= mine.ci95[0] and mine.ci95[1] >= its.ci95[0]


def _told(other: CandidateReport, chosen: CandidateReport) -> str:
    mine, its = chosen.artifact, other.artifact
    same = mine is not None and its is not None and mine.sha256 == its.sha256 and other.runtime == chosen.runtime
    return f"{other.name} ({'the same file' if same else _sqnr(other)})"


def _sqnr(candidate: CandidateReport) -> str:
    said = worst_sqnr(candidate)
    return "outputs equal" if said in ("equal", fmt.DASH) else f"SQNR {said}"
