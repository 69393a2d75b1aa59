"""The sizes at which a graph is mostly run, noted in the graph itself: what its work is counted at.

They stand in the graph, so that whoever counts (a stage, a receipt, `inspect` on a shipped file) counts alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx

# On the graph, as a JSON object: the axis, by its name in the inputs' shapes, and its size.
USUAL_SIZES = "optimizer.usual_sizes"


def note_usual_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Write the usual size of each axis into the graph, in place of what it noted before."""
    others = [entry for entry in model.metadata_props if entry.key != USUAL_SIZES]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    if sizes:
        model.metadata_props.add(key=USUAL_SIZES, value=json.dumps(dict(sizes), sort_keys=True))


def usual_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Return the usual size of each axis; none where the graph notes none."""
    text = next((entry.value for entry in model.metadata_props if entry.key == USUAL_SIZES), "{}")
    found: dict[str, int] = json.loads(text)
    return found
