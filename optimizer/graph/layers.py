"""The layer table of a stored artifact, read from the receipt beside its graph. Knows no onnx: reports load none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.errors import StageError

SCHEMA = 1
FILE = "receipt.json"
# Part of the reason of a row whose multiply-accumulates are a lower bound: the number alone reads like a size.
AT_LEAST = "at least this much work, how much more cannot be counted"
_FIELDS = {"node": str, "module": str, "operator": str, "macs": int, "requested": str, "delivered": str, "reason": str}
_REBUILD = "Build it again: optimize build RECIPE"


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One node that multiplies and accumulates. `module` is its PyTorch module; `reason` is empty where none is due."""

    node: str
    module: str
    operator: str
    macs: int
    requested: str
    delivered: str
    reason: str


def read_rows(folder: Path) -> tuple[LayerRow, ...] | None:
    """Return the rows of the receipt.json in `folder`; None where there is none.

    Raises: StageError when it is no such receipt.
    """
    file = folder / FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StageError(f"cannot be read: {error}", where=str(file), hint=_REBUILD) from error
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA:
        raise StageError(f"is no precision receipt of schema {SCHEMA}", where=str(file), hint=_REBUILD)
    rows = document.get("layers")
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise StageError("lacks or misstates its layers", where=str(file), hint=_REBUILD)
    return tuple(LayerRow(**{name: row[name] for name in _FIELDS}) for row in rows)


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in _FIELDS.items())


def as_executed(rows: Iterable[LayerRow], executed: Mapping[str, str], who: str) -> tuple[LayerRow, ...]:
    """Return a graph's rows with the precision by node that `who` executes, and why that is another."""
    return tuple(_executed(row, executed.get(row.node, row.delivered), who) for row in rows)


def _executed(row: LayerRow, kind: str, who: str) -> LayerRow:
    if kind == row.delivered:
        return row
    told = f"{who} computes it in {kind} although the graph says {row.delivered}"
    return replace(row, delivered=kind, reason="; ".join(filter(None, (row.reason, told))))


def widest_first(rows: Iterable[LayerRow]) -> list[LayerRow]:
    """Return the rows by their share of the work, the largest first; of equal ones in the graph's order."""
    return sorted(rows, key=lambda row: -row.macs)
