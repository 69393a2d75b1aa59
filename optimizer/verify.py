"""A stage's output against its parent, on real inputs: several batches, and a sample alone against in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from optimizer.errors import OptimizerError, StageError
from optimizer.measure.agreement import (
    MANY_ELEMENTS,
    MIN_EQUAL_SHARE,
    DisagreementError,
    Pair,
    Place,
    Worst,
    common_rms,
    compare,
    difference,
)
from optimizer.runtime.session import Array, Feed, Session
from optimizer.stage import Tolerance

__all__ = ["MANY_ELEMENTS", "MIN_EQUAL_SHARE", "DisagreementError", "Trials", "verify"]


@dataclass(frozen=True, slots=True)
class Trials:
    """What two sessions are compared on: real inputs by batch, and inputs at further sizes by their title.

    `made` are titles of sizes that no real sample has: there the parent may refuse, and then nothing is compared.
    """

    batches: Mapping[int, Feed]
    further: Mapping[str, Feed] = field(default_factory=dict)
    made: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, Feed]]:
        """Yield titles and feeds, the batches first."""
        for batch, feed in sorted(self.batches.items()):
            yield f"batch {batch}", feed
        yield from self.further.items()


def verify(
    parent: Session, child: Session, feeds: Mapping[int, Feed] | Trials, tolerance: Tolerance, *, what: str
) -> list[str]:
    """Run both on each feed and compare every output; return one sentence per output with its worst difference.

    `feeds` maps each batch size to real inputs of that size. A float output passes when every element lies within
    atol + rtol * |parent|, or when its SQNR reaches `min_sqnr_db`, whichever of the two the tolerance states.
    Numeric: the SQNR of a batch is the parent's power per element over all batches, or over this one where that is
    larger or it has MANY_ELEMENTS, by the power per element of this batch's error. Rounding is a share of the output's
    range, so an error beside a value that happens to lie near zero is no fault.
    Raises: DisagreementError, naming the output, the batch, the worst element, both values, the limit and its reason.
    """
    trials = feeds if isinstance(feeds, Trials) else Trials(feeds)
    if not trials.batches:
        raise StageError("there are no inputs to compare on", where=what)
    _same_names("inputs", [s.name for s in parent.inputs], [s.name for s in child.inputs], what)
    results, refused = _run(parent, child, trials, what)
    worst = {
        spec.name: Worst(common_rms([pairs[spec.name][0] for pairs in results.values()])) for spec in child.outputs
    }
    for title, feed in trials:
        for name, seen in worst.items() if title in results else ():
            try:
                compare(*results[title][name], tolerance, Place(what, name, title, "the parent"), seen)
            except DisagreementError as error:
                error.feed = feed
                raise
    for name, seen in worst.items():
        if seen.compared and seen.share < MIN_EQUAL_SHARE:
            raise _too_few(name, seen, trials, results, (tolerance, what))
    coupled = _alone_and_together(parent, child, trials.batches, results, (tolerance, what, worst))
    sizes = _sizes([title for title, _ in trials if title in results])
    notes = [f"output '{name}' at {sizes}: {seen.sentence()}" for name, seen in worst.items()]
    notes += [f"output '{name}': a sample's result depends on its batch, in the parent as well" for name in coupled]
    return notes + refused + list(trials.notes)


def _run(parent: Session, child: Session, trials: Trials, what: str) -> tuple[dict[str, dict[str, Pair]], list[str]]:
    """Return both outputs by title and name, and a sentence for each made-up size that the parent refuses."""
    results: dict[str, dict[str, Pair]] = {}
    refused: list[str] = []
    for title, feed in trials:
        try:
            expected = parent.infer(feed)
        except OptimizerError as error:
            if title not in trials.made:
                raise
            refused.append(f"{title}: not compared, the model itself refuses it: {error.what.splitlines()[0]}")
            continue
        try:
            found = child.infer(feed)
        except OptimizerError as error:
            failed = DisagreementError(
                f"fails at {title}, which its parent takes: {error.what}", where=what, hint=error.hint
            )
            failed.feed = feed
            raise failed from error
        _same_names("outputs", list(expected), list(found), what)
        results[title] = {name: (expected[name], found[name]) for name in expected}
    return results, refused


def _sizes(titles: list[str]) -> str:
    """Return titles in few words: those that differ in their last word share the others."""
    groups: dict[str, list[str]] = {}
    for title in titles:
        axis, _, size = title.rpartition(" ")
        groups.setdefault(axis, []).append(size)
    return "; ".join(f"{axis} {', '.join(sizes)}" for axis, sizes in groups.items())


def _same_names(kind: str, expected: list[str], found: list[str], what: str) -> None:
    if expected != found:
        raise StageError(f"{kind} are {', '.join(found)}; its parent's are {', '.join(expected)}", where=what)


def _too_few(
    name: str,
    seen: Worst,
    trials: Trials,
    results: Mapping[str, Mapping[str, Pair]],
    terms: tuple[Tolerance, str],
) -> DisagreementError:
    tolerance, what = terms
    limit = f"at least {MIN_EQUAL_SHARE:.0%} ({tolerance.reason})"
    error = DisagreementError(
        f"output '{name}' equals the parent's in {seen.share:.1%} only; allowed: {limit}", where=what
    )
    ran = [(title, feed) for title, feed in trials if title in results]
    error.feed = min(ran, key=lambda one: _equal_share(results[one[0]][name]))[1]
    return error


def _equal_share(pair: Pair) -> float:
    return float((pair[0] == pair[1]).mean()) if pair[0].size else 1.0


def _alone_and_together(
    parent: Session,
    child: Session,
    feeds: Mapping[int, Feed],
    results: Mapping[str, Mapping[str, Pair]],
    terms: tuple[Tolerance, str, Mapping[str, Worst]],
) -> list[str]:
    """Compare samples run alone with the same samples inside the largest batch; return the outputs that couple them.

    A model that mixes its samples on purpose does so in the parent too: that is a note, no fault of the stage.
    """
    tolerance, what, worst = terms
    alone, largest = min(feeds), max(feeds)
    if alone == largest:
        return []
    feed = feeds[largest]
    batched = {name for name, array in feed.items() if array.ndim and all(len(feeds[b][name]) == b for b in feeds)}
    coupled: dict[str, None] = {}
    for start in sorted({0, (largest - alone) // 2, largest - alone}):
        rows = slice(start, start + alone)
        part = {name: array[rows] if name in batched else array for name, array in feed.items()}
        single: dict[str, Array] = child.infer(part)
        reference: dict[str, Array] | None = None
        for name, (expected, together) in results[f"batch {largest}"].items():
            if not together.ndim or len(together) != largest or len(single[name]) != alone:
                continue  # an output without the batch as its first axis
            place = Place(what, name, f"sample {start} alone", f"the same sample inside batch {largest}")
            rms = worst[name].rms
            fault = difference((together[rows], single[name]), tolerance, place, rms)
            if fault is None:
                continue
            reference = reference or parent.infer(part)
            if difference((expected[rows], reference[name]), tolerance, place, rms) is None:
                wrong_alone = difference((reference[name], single[name]), tolerance, place, rms) is not None
                fault.feed, fault.samplewise = part if wrong_alone else feed, True
                raise fault
            coupled[name] = None
    return list(coupled)
