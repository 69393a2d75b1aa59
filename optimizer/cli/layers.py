"""The layers of a graph or an engine on the screen: what each was asked to compute in, and what it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_SHOWN = 40  # the widest; --json has all
_LONGEST = 40  # letters of a module or a node


def layer_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each layer, those with most multiply-accumulates first."""
    total = sum(row["macs"] for row in rows)
    shown = sorted(rows, key=lambda row: -row["macs"])[:_SHOWN]
    cells = [(tail(row["module"]) or "-", tail(row["node"]), row["operator"]) for row in shown]
    head = ("module", "node", "operator")
    module, node, operator = (max(map(len, column)) for column in zip(head, *cells, strict=True))
    yield f"  {'module':<{module}}  {'node':<{node}}  {'operator':<{operator}}  {'work':>6}  precision"
    for row, (where, name, kind) in zip(shown, cells, strict=True):
        share = f"{row['macs'] / total:.1%}" if total else "-"
        yield f"  {where:<{module}}  {name:<{node}}  {kind:<{operator}}  {share:>6}  {_precision(row)}"
    if len(rows) > len(shown):
        yield f"  ... and {len(rows) - len(shown)} smaller ones (--json has all)"


def _precision(row: Mapping[str, Any]) -> str:
    asked = "" if row["requested"] == row["delivered"] else f", not {row['requested']}"
    return f"{row['delivered']}{asked}" + (f": {row['reason']}" if row["reason"] else "")


def tail(name: str) -> str:
    """Return a name that fits; its end tells layers apart."""
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
