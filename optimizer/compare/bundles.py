"""Two bundles on this machine: what each says of itself where it must, everything else computed and timed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.compare.footprint import delivered, size
from optimizer.compare.interleaved import Terms, batches, compare_timed, time_bundles
from optimizer.compare.outputs import compare_outputs
from optimizer.compare.recorded import compare_recorded
from optimizer.compare.result import Check, Comparison, Finding, conclude
from optimizer.compare.shipped import Bundle, check_golden, check_interfaces, read_bundle
from optimizer.environment import cpu_model, gpu, installed
from optimizer.errors import MissingToolError
from optimizer.measure.surroundings import allowed

if TYPE_CHECKING:
    from optimizer.recipe.model import Gate


def compare_bundles(baseline: Path, candidate: Path, gate: Gate | None, terms: Terms) -> Comparison:
    """Judge the candidate bundle against the baseline bundle.

    Both are checked first. Without a gate only regressions are judged; with one its limits decide, as for reports.
    Raises: UsageError where there is no bundle, the interfaces differ or no batch is the gate's, StageError for one
    that is damaged or does not compute what it did, MissingToolError for one that cannot execute here, MeasurementError
    where timing fails.
    """
    before, after = read_bundle(baseline, "baseline"), read_bundle(candidate, "candidate")
    check_interfaces(before, after)
    threads = _threads(before, terms)
    wanted = batches(before, after, gate)
    checks = _profile(before, after, gate) + _preprocessing(before, after, gate)
    with before.open(threads) as one, after.open(threads) as other:
        check_golden(before, one)
        check_golden(after, other)
        checks += _labels(after, (one.labels, other.labels), gate)
        outputs, ran = compare_outputs(before, after, (one, other), gate)
    checks += outputs + compare_recorded(before, after, gate)
    source = next((b for b in ran if before.takes_sizes_of(b) and after.takes_sizes_of(b)), None)
    if wanted and source is not None:
        session = time_bundles(before, after, source, wanted, replace(terms, threads=threads))
        checks += compare_timed(before, after, session, gate)
    else:
        checks.append(_untimed(after, "golden inputs are" if wanted else "batch is", gate))
    checks += [_size(before, after, gate), *_precision(before, after, gate)]
    return conclude(tuple(checks), _notes(before, after, threads))


def _untimed(after: Bundle, lacking: str, gate: Gate | None) -> Check:
    finding: Finding = "inconclusive" if gate is None or gate.speedup is not None else "shown"
    return Check(after.name, "latency", finding, "-", "-", f"no {lacking} within the profiles of both")


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


def _preprocessing(before: Bundle, after: Bundle, gate: Gate | None) -> list[Check]:
    """Whether other steps are better ones, the model alone does not tell."""
    if before.preprocessing == after.preprocessing:
        return []
    old, new = ((bundle.preprocessing or "none")[:8] for bundle in (before, after))
    sentence = "samples are preprocessed in another way, which the outputs here, on inputs that are ready, do not show"
    return [Check(after.name, "preprocessing", "shown" if gate else "inconclusive", old, new, sentence)]


def _labels(after: Bundle, labels: tuple[tuple[str, ...] | None, ...], gate: Gate | None) -> list[Check]:
    """An answer under another name is another answer."""
    old, new = labels
    if old == new:
        return []
    finding: Finding = "shown" if gate or old is None else "fail"
    before, here = (f"{len(names)} labels" if names is not None else "none" for names in labels)
    if old is None or new is None:
        said = "labels are new" if old is None else "labels are missing"
    else:
        found = next((n for n, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
        first = f": class {found} is '{new[found]}', was '{old[found]}'" if found is not None else ""
        said = f"labels are others{first}"
    return [Check(after.name, "labels", finding, before, here, said)]


def _range(bundle: Bundle, axis: int | str) -> tuple[int, int] | None:
    given = bundle.passport["profile"].get(axis) if isinstance(axis, str) else None
    return (int(given["min"]), int(given["max"])) if given else None


def _said(sizes: tuple[int, int] | None) -> str:
    return f"{sizes[0]} to {sizes[1]}" if sizes else "any"


def _size(before: Bundle, after: Bundle, gate: Gate | None) -> Check:
    """Bytes are judged between what is alike: another runtime or precision has another size."""
    check = size(after.name, before.bytes, after.bytes, gate)
    wanted = [bundle.passport["precision"]["requested"] for bundle in (before, after)]
    other = (
        "another runtime" if before.runtime != after.runtime else "another precision" if len(set(wanted)) > 1 else ""
    )
    return replace(check, finding="shown", sentence=f"{check.sentence}; of {other}, so it is shown") if other else check


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
