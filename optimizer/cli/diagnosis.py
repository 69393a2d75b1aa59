"""A diagnosis on the screen: how evaluation data fits the calibrated ranges, the worst tensors first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimizer.errors import UsageError

_SCHEMA = 1
_SHOWN = 20  # the worst tensors; --json has all
_LONGEST_NAME = 44
_FIELDS = ("outside", "reach", "clipped", "calibrated_clipped", "sqnr_db", "calibrated_sqnr_db", "drifted")


def is_diagnosis(document: Mapping[str, Any]) -> bool:
    """Tell a diagnosis from the calibration table that lies beside it."""
    return document["kind"] == "calibration" and "evaluation_samples" in document


def check_diagnosis(document: Mapping[str, Any]) -> None:
    """Refuse a diagnosis of another schema, or a damaged one.

    Raises: UsageError.
    """
    if document.get("schema") != _SCHEMA:
        raise _refused(document, f"is a diagnosis of schema {document.get('schema')}; this version reads {_SCHEMA}")
    tensors = document["tensors"].values()
    whole = all(isinstance(tensor, Mapping) and set(_FIELDS) <= tensor.keys() for tensor in tensors)
    if not whole or not isinstance(document.get("findings"), list) or "calibration_samples" not in document:
        raise _refused(document, "is no whole diagnosis")


def diagnosis_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that show a diagnosis, in its own order: the worst tensors first."""
    check_diagnosis(document)
    tensors: Mapping[str, Mapping[str, Any]] = document["tensors"]
    beyond = sum(bool(tensor["drifted"]) for tensor in tensors.values())
    yield f"method   {document['method']}, {document['calibration_samples']} calibration samples"
    yield f"against  {document['evaluation_samples']} evaluation samples"
    yield f"tensors  {len(tensors)}, {beyond} of them drifted"
    yield from (f"  ! {sentence}" for sentence in document["findings"])
    shown = list(tensors.items())[:_SHOWN]
    width = max([len("tensor"), *(min(len(name), _LONGEST_NAME) for name, _ in shown)])
    yield (
        f"  {'tensor':<{width}} {'outside':>9} {'reach':>7} {'clipped':>9} {'(before)':>9} {'dB':>6} {'(before)':>9}"
    )
    for name, tensor in shown:
        cells = [_cell(tensor[field]) for field in _FIELDS[:-1]]
        drifted = "  drifted" if tensor["drifted"] else ""
        yield (
            f"  {_short(name):<{width}} {cells[0]:>9} {cells[1]:>7} {cells[2]:>9} {cells[3]:>9} {cells[4]:>6} "
            f"{cells[5]:>9}{drifted}"
        )
    if len(tensors) > len(shown):
        yield f"  ... and {len(tensors) - len(shown)} more, with less to say (--json has all)"
    yield "outside: share of evaluation values beyond all that calibration saw; reach: the largest of them over its"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _short(name: str) -> str:
    """Return a name that fits: its end tells tensors apart."""
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]


def _refused(document: Mapping[str, Any], what: str) -> UsageError:
    return UsageError(
        what, where=str(document["path"]), hint="Build it again: optimize build writes one beside each table."
    )
