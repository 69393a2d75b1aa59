"""The precision receipt layer by layer: what was asked for, what the target executes, and why the two differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from optimizer.graph.cost import Site, count
from optimizer.graph.layers import AT_LEAST, SCHEMA, LayerRow
from optimizer.graph.modules import module_of
from optimizer.graph.receipt import HIDDEN, UNKNOWN, Receipt


def layer_rows(
    model: Path | onnx.ModelProto,
    receipt: Receipt,
    requested: str,
    left: Mapping[str, str] | None = None,
    kept: Collection[str] = (),
) -> tuple[LayerRow, ...]:
    """Return one row for every node of `model` that multiplies and accumulates, in the graph's order.

    `receipt` is that of the same file. `left` says why nodes were left as they were; those of them in `kept` were asked
    to be, so that float32 is what they were asked for.
    """
    left = left or {}
    return tuple(_row(site, receipt, requested, left, kept) for site in count(model).sites)


def _row(site: Site, receipt: Receipt, requested: str, left: Mapping[str, str], kept: Collection[str]) -> LayerRow:
    # A node inside a body is named behind the node that holds it.
    around = [site.key, *(site.key[:i] for i, letter in enumerate(site.key) if letter == "/")]
    asked = "fp32" if any(name in kept for name in around) else requested
    delivered = receipt.precisions.get(site.key, receipt.precisions.get(HIDDEN, UNKNOWN))
    reason = next((left[name] for name in around if name in left), "")
    if not reason and delivered != asked:
        hidden = site.key not in receipt.precisions
        reason = (
            "the runtime hides it in a larger operator" if hidden else "the runtime has no kernel for it as it stands"
        )
    if site.reason:
        reason = "; ".join(filter(None, (reason, f"{AT_LEAST}: {site.reason}")))
    return LayerRow(site.key, module_of(site.node), site.node.op_type, site.macs, asked, delivered, reason)


def document(rows: Sequence[LayerRow], receipt: Receipt, dialect: str) -> dict[str, Any]:
    """Return the receipt in plain JSON types, as the stage quantize writes it beside its graph."""
    return {
        "schema_version": SCHEMA,
        "dialect": dialect,
        "precision": receipt.shares,
        "notes": list(receipt.notes),
        "layers": [asdict(row) for row in rows],
    }
