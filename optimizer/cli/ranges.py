"""A calibration table on the screen: every tensor's range and health, and what differs between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimizer.errors import StageError, UsageError

_SHOWN = 20  # the worst tensors; --json has all
_LONGEST_NAME = 44
_LONGEST_MODULE = 32


def screen(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that show a table, worst tensors first.

    Raises: UsageError for a table of another schema, or a damaged one.
    """
    from optimizer.calibration.doctor import findings, patients

    table = _table(document)
    percent = f" ({table.percentile:g} %)" if table.method == "percentile" else ""
    yield f"method   {table.method}{percent}, {table.samples} samples"
    yield f"tensors  {len(table.tensors)}"
    if table.spared:
        yield f"left in float by measurement   {', '.join(table.spared)}"
    yield from (f"  ! {sentence}" for sentence in findings(table))
    found = patients(table)
    shown = found[:_SHOWN]
    names = _column("tensor", [h.tensor for h in shown], _LONGEST_NAME)
    modules = [table.tensors[h.tensor].module for h in shown]
    if any(modules):
        modules = [f" {text}" for text in _column("module", [m or "-" for m in modules], _LONGEST_MODULE)]
    else:  # a graph that no PyTorch export made names none
        modules = [""] * len(names)
    yield (
        f"  {names[0]}{modules[0]} {'method':<10} {'min':>10} {'max':>10} {'magnitude':>10} {'clipped':>9} {'dB':>6} "
        f"{'moved':>6}"
    )
    for health, name, module in zip(shown, names[1:], modules[1:], strict=True):
        tensor = table.tensors[health.tensor]
        decibels = "-" if health.sqnr_db is None else f"{health.sqnr_db:.1f}"
        moved = "-" if health.unsettled is None else f"{health.unsettled:.1%}"
        note = f"  {'; '.join(health.complaints)}" if health.complaints else ""
        yield (
            f"  {name}{module} {tensor.method:<10} {tensor.min:>10.4g} {tensor.max:>10.4g} "
            f"{tensor.magnitude:>10.4g} {health.clipped:>9.2g} {decibels:>6} {moved:>6}{note}"
        )
    if len(found) > len(shown):
        yield f"  ... and {len(found) - len(shown)} more, with less to say (--json has all)"


def with_health(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with what the doctor says: `findings`, and `complaints` by tensor, the worst first."""
    from optimizer.calibration.doctor import findings, patients

    table = _table(document)
    complaints = {h.tensor: list(h.complaints) for h in patients(table) if h.complaints}
    return {**document, "findings": list(findings(table)), "complaints": complaints}


def chosen_ranges(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with each tensor cut down to its chosen range: what a screen compares two tables by."""
    tensors = {
        name: {"method": tensor.method, "low": tensor.low, "high": tensor.high, "magnitude": tensor.magnitude}
        for name, tensor in _table(document).tensors.items()
    }
    return {**document, "tensors": tensors}


def largest_change_first(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a difference of chosen ranges with its changed tensors ordered by how much their magnitude did."""
    part = found.get("tensors", {})
    changed = dict(sorted(part.get("changed", {}).items(), key=lambda item: -_change(*item[1])))
    return {**found, "tensors": {**part, "changed": changed}} if changed else dict(found)


def _change(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    before, after = float(first["magnitude"]), float(second["magnitude"])
    return abs(after - before) / max(before, after) if max(before, after) > 0 else 0.0


def _table(document: Mapping[str, Any]) -> Any:
    from optimizer.calibration.table import CalibrationTable

    try:
        return CalibrationTable.from_json(document, str(document["path"]))
    except StageError as error:
        raise UsageError(error.what, where=error.where, hint=error.hint) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"is no whole calibration table ({type(error).__name__}: {error})",
            where=str(document["path"]),
            hint="Build it again: optimize build writes one per int8 variant.",
        ) from error


def _column(title: str, entries: Sequence[str], longest: int) -> list[str]:
    """Return title and entries, alike in width; of one that is too long the end, which tells it apart."""
    cut = [entry if len(entry) <= longest else "…" + entry[1 - longest :] for entry in entries]
    width = max(map(len, (title, *cut)))
    return [text.ljust(width) for text in (title, *cut)]
