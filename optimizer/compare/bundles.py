"""Two bundles on this machine: what each says of itself where it must, everything else computed and timed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.compare.footprint import delivered, size
from optimizer.compare.interleaved import Timing, batches, compare_timed, time_bundles
from optimizer.compare.outputs import compare_outputs
from optimizer.compare.recorded import compare_recorded
from optimizer.compare.result import Check, Comparison, Finding, conclude
from optimizer.compare.shipped import Bundle, check_golden, check_interfaces, read_bundle
from optimizer.environment import cpu_model, gpu, installed
from optimizer.errors import MissingToolError
from optimizer.measure.surroundings import allowed

if TYPE_CHECKING:
    from optimizer.recipe.model import Gate

SECONDS = 1.0  # of each bundle at each batch, as a recipe's measure.seconds


@dataclass(frozen=True, slots=True)
class Terms:
    """How latency is measured: `threads` of each bundle, by default those that the baseline was measured with."""

    threads: int | None = None
    seconds: float = SECONDS
    progress: Callable[[str, int, int], None] = lambda what, done, total: None


def compare_bundles(baseline: Path, candidate: Path, gate: Gate | None, terms: Terms) -> Comparison:
    """Judge the candidate bundle against the baseline bundle.

    Both are checked first. Without a gate only regressions are judged; with one its limits decide, as for reports.
    Raises: UsageError where there is no bundle or the interfaces differ, StageError for one that is damaged or does
    not compute what it did, MissingToolError for one that cannot execute here, MeasurementError where timing fails.
    """
    before, after = read_bundle(baseline, "baseline"), read_bundle(candidate, "candidate")
    check_interfaces(before, after)
    threads = _threads(before, terms)
    checks = _profile(before, after, gate)
    with before.open(threads) as one, after.open(threads) as other:
        check_golden(before, one)
        check_golden(after, other)
        checks += compare_outputs(before, after, (one, other))
    checks += compare_recorded(before, after, gate)
    wanted = batches(before, after, gate)
    if wanted:
        timing = Timing(threads, terms.seconds, lambda done, total: terms.progress("latency", done, total))
        session = time_bundles(before, after, wanted, timing)
        checks += compare_timed(before, after, session, gate)
    else:
        sentence = "no batch is within the profiles of both"
        checks.append(Check(after.name, "latency", "inconclusive", "-", "-", sentence))
    checks.append(size(after.name, before.bytes, after.bytes, gate))
    checks += _precision(before, after, gate)
    return conclude(tuple(checks), _notes(before, after, threads))


def _threads(before: Bundle, terms: Terms) -> int:
    """Return the CPU threads of each. Raises: MissingToolError for more than this process may use processors."""
    threads, here = terms.threads or before.threads, len(allowed())
    if threads > here:
        by = "" if terms.threads else " (so many the baseline was measured with when it was built)"
        raise MissingToolError(
            f"{threads} threads are asked for{by}, and this process may use {here} processor{'s' if here > 1 else ''}",
            where="compare",
            hint=f"Give --threads {here}, or compare where there are {threads}.",
        )
    return threads


def _profile(before: Bundle, after: Bundle, gate: Gate | None) -> list[Check]:
    """A candidate that takes fewer sizes than the baseline breaks who calls it with the others."""
    checks = []
    theirs = {spec.name: spec for spec in after.inputs}
    for spec in before.inputs:
        for position, axes in enumerate(zip(spec.shape, theirs[spec.name].shape, strict=True)):
            old, new = _range(before, axes[0]), _range(after, axes[1])
            if old == new:
                continue
            fewer = new is not None and (old is None or new[0] > old[0] or new[1] < old[1])
            sentence = f"input '{spec.name}' takes {'fewer' if fewer else 'more'} sizes at axis {position}, '{axes[1]}'"
            finding: Finding = "fail" if fewer and gate is None else "shown"
            checks.append(Check(after.name, "profile", finding, _said(old), _said(new), sentence))
    return checks


def _range(bundle: Bundle, axis: int | str) -> tuple[int, int] | None:
    given = bundle.passport["profile"].get(axis) if isinstance(axis, str) else None
    return (int(given["min"]), int(given["max"])) if given else None


def _said(sizes: tuple[int, int] | None) -> str:
    return f"{sizes[0]} to {sizes[1]}" if sizes else "any"


def _precision(before: Bundle, after: Bundle, gate: Gate | None) -> list[Check]:
    old, new = before.passport["precision"], after.passport["precision"]
    if not old["delivered"] or not new["delivered"]:
        return []
    if old["requested"] == new["requested"]:
        wanted = old["requested"]
        shares = (old["delivered"].get(wanted, 0.0), new["delivered"].get(wanted, 0.0))
        return [delivered(after.name, wanted, shares, gate)]
    sentence = "another precision was asked for: shown, never judged"
    return [Check(after.name, "precision", "shown", _shares(old["delivered"]), _shares(new["delivered"]), sentence)]


def _shares(found: Mapping[str, float]) -> str:
    return ", ".join(f"{share:.0%} {name}" for name, share in sorted(found.items(), key=lambda pair: -pair[1]))


def _notes(before: Bundle, after: Bundle, threads: int) -> tuple[str, ...]:
    notes = [_origin(bundle) for bundle in (before, after)]
    if before.passport["name"] != after.passport["name"]:
        notes.append(f"The bundles are of two recipes, {before.passport['name']} and {after.passport['name']}.")
    machine = ", ".join([cpu_model(), *_gpus(before, after)])
    said = f"Measured here, in turns: {machine}, {threads} CPU thread{'s' if threads > 1 else ''} for both"
    differ = [f"the {b.side} was built with {b.threads}" for b in (before, after) if b.threads != threads]
    return (*notes, f"{said} ({'; '.join(differ)})." if differ else f"{said}.")


def _gpus(*bundles: Bundle) -> list[str]:
    """The name of each GPU that one of them executes on."""
    devices = sorted({bundle.device for bundle in bundles if bundle.device != "cpu"})
    found = [gpu(int(device.rpartition(":")[2])) for device in devices]
    return [each.name for each in found if each is not None]


def _origin(bundle: Bundle) -> str:
    passport = bundle.passport
    built = passport["runs_on"]["packages"]
    here = installed(built)
    versions = [f"{n} {v}{f', here {here[n]}' if here.get(n, v) != v else ''}" for n, v in built.items()]
    where = f" on {bundle.device}" + (f", built with {'; '.join(versions)}" if versions else "")
    return f"{bundle.side.capitalize()}: {passport['name']} {bundle.name}{where}, {passport['from']['created'][:10]}."
