"""Latency of two bundles, measured here and now in one session: nothing of what their passports say is believed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from optimizer.compare.result import WIDEST, Check, Finding, percent
from optimizer.compare.shipped import Bundle
from optimizer.errors import UsageError
from optimizer.measure.affinity import pinned
from optimizer.measure.latency import Timed, blamed, measure_openings
from optimizer.measure.observed import causes
from optimizer.measure.surroundings import Watch

if TYPE_CHECKING:
    from optimizer.measure.series import LatencySession
    from optimizer.measure.verdict import Difference
    from optimizer.recipe.model import Gate

BASELINE, CANDIDATE = "baseline bundle", "candidate bundle"


SECONDS = 1.0  # of each bundle at each batch, as a recipe's measure.seconds


@dataclass(frozen=True, slots=True)
class Terms:
    """How both are timed: CPU threads of each (0: as many as the baseline was measured with), seconds of each at each
    batch, and who is told how far it is.
    """

    threads: int = 0
    seconds: float = SECONDS
    progress: Callable[[str, int, int], None] = lambda what, done, total: None


def batches(before: Bundle, after: Bundle, gate: Gate | None) -> tuple[int, ...]:
    """Return the batches that either was measured at, and the gate's, as far as both take them; else the smallest.

    Raises: UsageError as `asked_batch`.
    """
    wanted = {int(batch) for bundle in (before, after) for batch in bundle.passport["latency_ms"] or {}}
    wanted |= {asked_batch(before, after, gate) or 0} - {0}
    both = tuple(batch for batch in sorted(wanted) if before.takes(batch) and after.takes(batch))
    if both:
        return both
    profiles = (size for b in (before, after) for size in _smallest(b))
    return tuple(batch for batch in sorted({1, *profiles}) if before.takes(batch) and after.takes(batch))[:1]


def asked_batch(before: Bundle, after: Bundle, gate: Gate | None) -> int | None:
    """Return the batch at which a gate asks for the speedup: its own, else the first that the recipe measured.

    None where no speedup is asked for, or neither bundle was measured at any batch.
    Raises: UsageError where the gate has no batch, and a passport of an older release does not say which was first.
    """
    if gate is None or gate.speedup is None:
        return None
    measured = next((bundle for bundle in (before, after) if bundle.passport["latency_ms"]), None)
    if gate.batch is not None or measured is None:
        return gate.batch
    order = measured.passport.get("timed_batches") or list(measured.passport["latency_ms"])
    if len(order) > 1 and "timed_batches" not in measured.passport:
        raise UsageError(
            f"has no batch, and the passport of the {measured.side} does not say at which of "
            f"{', '.join(sorted(order, key=int))} a speedup is asked for",
            where="gate",
            hint="Add 'batch: N' to the gate's file, or write the bundle again.",
        )
    return int(order[0])


def _smallest(bundle: Bundle) -> tuple[int, ...]:
    axis = bundle.inputs[0].shape[0]
    if isinstance(axis, int):
        return (axis,)
    given = bundle.passport["profile"].get(axis)
    return (int(given["min"]),) if given else ()


def time_bundles(
    before: Bundle, after: Bundle, source: Bundle, wanted: tuple[int, ...], terms: Terms
) -> LatencySession:
    """Measure both in turns, pinned to the same processors, on the golden inputs of `source`, which both take.

    Raises: MeasurementError, `where` naming the bundle that failed; MissingToolError for fewer processors than threads.
    """
    rows = {name: np.asarray(array) for name, array in source.golden_inputs.items()}
    feeds = {
        batch: {name: np.ascontiguousarray(array[np.arange(batch) % len(array)]) for name, array in rows.items()}
        for batch in wanted
    }

    @contextlib.contextmanager
    def opened() -> Iterator[Mapping[str, Timed]]:
        with contextlib.ExitStack() as stack:
            runners = {}
            for name, bundle in ((BASELINE, before), (CANDIDATE, after)):
                with blamed(name):
                    runners[name] = stack.enter_context(bundle.open(terms.threads))
            yield runners

    device = next((b.device for b in (before, after) if b.device != "cpu"), "cpu")
    with pinned(terms.threads) as affinity, Watch(affinity, device) as watch:
        return measure_openings(
            opened,
            feeds,
            baseline=BASELINE,
            seconds=terms.seconds,
            progress=partial(terms.progress, "latency"),
            watch=watch,
        )


def compare_timed(before: Bundle, after: Bundle, session: LatencySession, gate: Gate | None) -> list[Check]:
    """Judge every batch of a session by the one rule; with a gate its speedup is asked at one batch."""
    timed = tuple(session.series[CANDIDATE])
    asked = (asked_batch(before, after, gate) or timed[0]) if gate is not None and gate.speedup is not None else None
    same = before.same_as(after)
    checks = []
    for batch in timed:
        if gate is not None and batch == asked:
            finding, sentence = _undisturbed(session, batch, _speedup(session, batch, gate))
        elif same:
            finding, sentence = "shown", f"{_ratio(session, batch)[1]}: the same artifact and runtime, so much is noise"
        elif gate is not None:
            finding, sentence = "shown", f"{_regression(session, batch)[1]}; the gate does not ask for it"
        else:
            finding, sentence = _undisturbed(session, batch, _regression(session, batch))
        old, new = (f"{np.median(session.series[n][batch].counted_ms):.4g} ms" for n in (BASELINE, CANDIDATE))
        checks.append(Check(after.name, f"latency, batch {batch}", finding, old, new, sentence))
    if asked is not None and asked not in timed:
        sentence = f"the gate asks for the speedup at batch {asked}, which not both bundles take"
        checks.append(Check(after.name, f"latency, batch {asked}", "inconclusive", "-", "-", sentence))
    return checks


def _ratio(session: LatencySession, batch: int) -> tuple[Difference, str]:
    found = session.difference(CANDIDATE, batch)
    assert found is not None  # only the baseline has none
    low, high = found.interval
    interval = f"{percent(found.level)} interval {low:.3f} to {high:.3f}"
    return found, f"p50 is {found.ratio:.3f} x the baseline's ({interval}, measured here in turns)"


def _regression(session: LatencySession, batch: int) -> tuple[Finding, str]:
    found, said = _ratio(session, batch)
    if found.kind in ("slower", "faster"):
        finding: Finding = "fail" if found.kind == "slower" else "pass"
        return finding, f"{said}: {found.kind} beyond the tolerance of {percent(found.tolerance)}"
    beyond = max(found.interval.high, 1 + found.tolerance) - 1
    if beyond > WIDEST:
        return "inconclusive", f"too disturbed to tell: {said}"
    return "pass", f"no slowdown beyond {percent(beyond)} found; {said}: {found.kind}"


def _speedup(session: LatencySession, batch: int, gate: Gate) -> tuple[Finding, str]:
    from optimizer.gate import judge_speedup

    assert gate.speedup is not None
    status, sentence = judge_speedup(session.speedup(CANDIDATE, batch), gate.speedup.min, str(batch))
    return status, f"{sentence}; baseline bundle over candidate bundle, measured here in turns"


def _undisturbed(session: LatencySession, batch: int, found: tuple[Finding, str]) -> tuple[Finding, str]:
    """Return the answer with what did not hold still, which its interval holds, and what was disturbed: that takes the
    answer back.
    """
    finding, sentence = found
    both = {name: session.series[name][batch] for name in (BASELINE, CANDIDATE)}
    shaky = [f"{name}: {series.unstable}" for name, series in both.items() if series.unstable]
    sentence += f", which includes that latency did not hold still ({'; '.join(shaky)})" if shaky else ""
    detail = both[CANDIDATE].detail()
    if not detail["disturbed"]:
        return finding, sentence
    by = "; ".join(causes(session.surroundings[batch])) if batch in session.surroundings else ""
    return "inconclusive", (
        f"{sentence}; {detail['disturbed_rounds']} of the {detail['rounds']} rounds were disturbed"
        f"{f' ({by})' if by else ''}: that decides nothing, measure again, on a quiet machine or for longer"
    )
