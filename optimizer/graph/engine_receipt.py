"""The precision receipt of an engine, from the layer table that the builder logs: no GPU is needed to read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx

from optimizer.graph.receipt import Receipt, graph_receipt

# From narrow to wide.
NAMES = {"Int4": "int4", "Int8": "int8", "FP8": "fp8", "Half": "fp16", "BFloat16": "bf16", "Float": "fp32"}
WIDTHS = list(NAMES)
# Kernels of one product, with what is fused around it; in others (attention as one kernel) several products meet.
MULTIPLIES = frozenset(
    {
        *("correlation", "convolution", "deconv", "deconvolution", "gemm", "matmul", "matrix multiply"),
        *("runtime_fusion", "matrixmultiply", "fullyconnected"),
    }
)
_PLANNED = "cask"  # how TensorRT's inspector calls its libraries' kernels: CaskConvolution, CaskGemmMatrixMultiply


def engine_receipt(model: Path | onnx.ModelProto, layers: Iterable[Mapping[str, Any]]) -> Receipt:
    """Return the precision of every node as the engine executes it.

    `layers` is the table of `engine_log.table` or that of the engine inspector. A kernel computes in the narrowest
    type of its inputs (of its weights, where the inspector does not know its inputs); of a node that the table shows
    in no kernel of its own (fused attention) the graph's type is taken, which a note says.
    Numeric: TensorRT-RTX 1.7 computes ConvTranspose in float32 although the graph says int8.
    """
    wanted = graph_receipt(model)
    executed: dict[str, str] = {}
    rows = list(layers)
    for layer in rows:
        if not multiplies(str(layer["kind"])):
            continue
        types = _known(layer["inputs"]) or _known(layer.get("constants", ()))
        if types:
            executed |= dict.fromkeys((n for n in layer["onnx_nodes"] if n in wanted.macs), NAMES[types[0]])
    # Weights of four bits are a kernel's constants, or those of a kernel before it that dequantizes them.
    if any(t["type"] == "Int4" for row in rows for t in row.get("constants", ())):
        executed |= {name: "int4" for name, kind in wanted.precisions.items() if kind == "int4"}
    # What the graph says is float32 the engine cannot have narrowed: its network is strongly typed.
    unseen = [name for name in wanted.macs if name not in executed and wanted.precisions[name] != "fp32"]
    wider = [name for name, kind in executed.items() if kind != wanted.precisions[name]]
    notes = list(wanted.notes)
    if wider:
        kinds = sorted({f"{executed[n]} instead of {wanted.precisions[n]}" for n in wider})
        notes.append(f"the engine computes {_listed(wider)} in {' and '.join(kinds)}")
    if unseen:
        notes.append(
            f"the engine's layer table has no kernel of its own for {_listed(unseen)}: the graph's types count"
        )
    return Receipt({**wanted.precisions, **executed}, wanted.macs, wanted.uncounted, tuple(notes))


def _known(tensors: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the types that are precisions, the narrowest first."""
    return sorted((str(t["type"]) for t in tensors if t["type"] in NAMES), key=WIDTHS.index)


def multiplies(kind: str) -> bool:
    """Tell whether a layer of this kind is one product with what is fused around it."""
    lowered = kind.lower()
    return lowered in MULTIPLIES or (lowered.startswith(_PLANNED) and "pool" not in lowered)


def merge(receipts: Mapping[str, Receipt], precision: str) -> Receipt:
    """Return one receipt for an engine of several compute capabilities: that with the least share in `precision`.

    Its notes name every node that another capability computes in another precision. `receipts`: by capability.
    Raises: ValueError without a receipt.
    """
    if not receipts:
        raise ValueError("no receipt to merge")
    least = min(receipts, key=lambda name: receipts[name].shares.get(precision, 0.0))
    chosen = receipts[least]
    notes = []
    for name, other in receipts.items():
        kinds: dict[tuple[str, str], list[str]] = {}
        for node, kind in other.precisions.items():
            if chosen.precisions.get(node, kind) != kind:
                kinds.setdefault((kind, chosen.precisions[node]), []).append(node)
        notes += [
            f"compute capability {name} computes {_listed(nodes)} in {kind}, {least} in {other_kind}"
            for (kind, other_kind), nodes in kinds.items()
        ]
    return Receipt(chosen.precisions, chosen.macs, chosen.uncounted, (*chosen.notes, *notes))


def _listed(names: list[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
