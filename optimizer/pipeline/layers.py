"""The precision of a candidate's layers, from the receipts that lie beside its artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from optimizer.results import LayerPrecision

if TYPE_CHECKING:
    from optimizer.pipeline.subject import Subject

MOST = 200  # rows in report.json; the receipt has all


def layer_table(subject: Subject, delivered: Mapping[str, float]) -> dict[str, Any]:
    """Return the report's `layers` and `layer_count`; nothing for a candidate whose graph has no receipt.

    Of an engine as its own layer table says it executes them; of an ONNX file in float32 where `delivered`, the shares
    read back from its runtime, knows nothing of the type that the graph says.
    Raises: StageError for a damaged receipt.
    """
    graph = subject.graph
    if graph is None or not graph.path.is_dir():
        return {}
    if not (graph.path / "receipt.json").is_file():
        return {}
    from optimizer.graph.layers import as_executed, read_rows, widest_first

    rows = read_rows(graph.path) or ()
    if subject.artifact.format == "engine":
        about = json.loads((subject.artifact.path / "engine.json").read_text(encoding="utf-8"))
        rows = as_executed(rows, about.get("executed", {}), "the engine")
    elif "fp32" in delivered:
        wide = {row.node: "fp32" for row in rows if row.delivered not in delivered}
        rows = as_executed(rows, wide, f"{subject.runtime} on {subject.device}")
    shown = tuple(LayerPrecision(**asdict(row)) for row in widest_first(rows)[:MOST])
    return {"layers": shown, "layer_count": len(rows)}
