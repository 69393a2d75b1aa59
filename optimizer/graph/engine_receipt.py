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
    {"correlation", "convolution", "deconv", "deconvolution", "gemm", "matmul", "matrix multiply", "runtime_fusion"}
)


def engine_receipt(model: Path | onnx.ModelProto, layers: Iterable[Mapping[str, Any]]) -> Receipt:
    """Return the precision of every node as the engine executes it.

    `layers` is the table of `engine_log.layers`. A kernel computes in the narrowest type of its inputs; of a node that
    the table shows in no kernel of its own (fused attention) the graph's type is taken, which a note says.
    Numeric: TensorRT-RTX 1.7 computes ConvTranspose in float32 although the graph says int8.
    """
    wanted = graph_receipt(model)
    executed: dict[str, str] = {}
    rows = list(layers)
    for layer in rows:
        if str(layer["kind"]).lower() not in MULTIPLIES:
            continue
        types = sorted((t["type"] for t in layer["inputs"] if t["type"] in NAMES), key=WIDTHS.index)
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


def _listed(names: list[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
