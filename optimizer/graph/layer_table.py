"""The rows of a graph that has no receipt beside it."""

from __future__ import annotations

import onnx

from optimizer.graph.cost import Site, count
from optimizer.graph.layers import AT_LEAST, LayerRow
from optimizer.graph.modules import module_of
from optimizer.graph.receipt import UNKNOWN, graph_receipt


def graph_rows(model: onnx.ModelProto) -> tuple[LayerRow, ...]:
    """Return the rows of a graph without a receipt: in the types that it is written in, which is all it asks for."""
    precisions = graph_receipt(model).precisions
    return tuple(_as_written(site, precisions.get(site.key, UNKNOWN)) for site in count(model).sites)


def _as_written(site: Site, kind: str) -> LayerRow:
    doubt = f"{AT_LEAST}: {site.reason}" if site.reason else ""
    return LayerRow(site.key, module_of(site.node), site.node.op_type, site.macs, kind, kind, doubt)
