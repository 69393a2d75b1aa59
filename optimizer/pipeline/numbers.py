"""What stored measurements and artifacts give to a candidate's fields in the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.measure.statistics import unsupported
from optimizer.pipeline.bench import read_document
from optimizer.pipeline.crosscheck import scenario_notes
from optimizer.pipeline.run import graph_folder
from optimizer.results import CandidateReport, Latency, Speedup
from optimizer.types import MAIN_FILE

if TYPE_CHECKING:
    from optimizer.pipeline.subject import Subject
    from optimizer.store import Entry

AGREEMENT = 0.10  # of two p50s of one candidate by two protocols: sessions differ by several percent


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


def doubts(candidates: Sequence[CandidateReport]) -> list[str]:
    """Return sentences for the report: percentiles of too few calls, and protocols that disagree about one batch."""
    found = []
    for candidate in candidates:
        for batch, latency in (candidate.latency_ms or {}).items():
            thin = unsupported(latency.samples)
            if thin:
                found.append(f"{candidate.name} at batch {batch}: {thin}")
        for load in candidate.concurrency:
            thin = unsupported(load["calls"])
            if thin:
                found.append(f"{candidate.name}, {load['workers']} at once: {thin}")
        found += [f"{candidate.name} at batch {said}" for said in _disagreements(candidate)]
    return found + scenario_notes(candidates, AGREEMENT)


def _disagreements(candidate: CandidateReport) -> list[str]:
    """Where the p50 of the sweep, or of one runner by itself, is not that of the latency at the same batch."""
    others: dict[str, list[tuple[str, float]]] = {}
    for batch, point in (candidate.sweep or {}).get("points", {}).items():
        others.setdefault(batch, []).append(("the sweep", point["latency_ms"]["p50"]))
    for load in candidate.concurrency:
        if load["workers"] == 1:
            others.setdefault(str(load["batch"]), []).append(("one runner by itself", load["p50_ms"]))
    found = []
    for batch, latency in (candidate.latency_ms or {}).items():
        for what, p50 in others.get(batch, []):
            apart = max(p50 / latency.p50, latency.p50 / p50) - 1
            if apart > AGREEMENT:
                found.append(
                    f"{batch}: p50 is {latency.p50:.4g} ms in turn with the other candidates and {p50:.4g} ms in "
                    f"{what}, {apart:.0%} apart: the machine, or what the caches held, was not the same; the verdict "
                    "rests on the former"
                )
    return found


def trtexec_line(subject: Subject) -> str | None:
    """Return the line that builds the like of an engine, in the run's folder; None for other artifacts."""
    if subject.artifact.format != "engine" or subject.graph is None:
        return None
    from optimizer.graph.trtexec import trtexec

    receipt = json.loads((subject.artifact.path / "engine.json").read_text(encoding="utf-8"))
    graph = f"{graph_folder(subject.graph)}/{MAIN_FILE['onnx']}"
    return trtexec(receipt, graph, f"{subject.name}.plan")
