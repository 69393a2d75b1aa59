"""What stored measurements and artifacts give to a candidate's fields in the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.pipeline.bench import read_document
from optimizer.pipeline.run import graph_folder
from optimizer.results import Latency, Speedup
from optimizer.types import MAIN_FILE

if TYPE_CHECKING:
    from optimizer.pipeline.subject import Subject
    from optimizer.store import Entry


def latency_fields(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """Split the session's document into the report's three tables, each by batch."""
    if document is None:
        return {}
    found: dict[str, Any] = {
        "latency_ms": {b: Latency.model_validate(d["latency"] | d["detail"]) for b, d in document.items()},
        "throughput": {b: d["throughput"] for b, d in document.items()},
    }
    ratios = {
        b: Speedup.model_validate(d["speedup"] | {"difference": d["difference"]})
        for b, d in document.items()
        if d["speedup"] is not None
    }
    return found | {"speedup": ratios or None}


def load_fields(parts: Mapping[str, Entry]) -> dict[str, Any]:
    """Return what was measured under load, with the numbers that stand in fields of their own; a trace has none."""
    found = {name: read_document(entry)[name] for name, entry in parts.items() if name != "trace"}
    load: dict[str, Any] = dict(found)
    if "memory" in found:
        load["peak_memory_bytes"] = found["memory"]["own_bytes"]
    if "energy" in found:
        load["energy_mj_per_item"] = found["energy"]["mj_per_item"]
    return load


def trtexec_line(subject: Subject) -> str | None:
    """Return the line that builds the like of an engine, in the run's folder; None for other artifacts."""
    if subject.artifact.format != "engine" or subject.graph is None:
        return None
    from optimizer.graph.trtexec import trtexec

    receipt = json.loads((subject.artifact.path / "engine.json").read_text(encoding="utf-8"))
    graph = f"{graph_folder(subject.graph)}/{MAIN_FILE['onnx']}"
    return trtexec(receipt, graph, f"{subject.name}.plan")
