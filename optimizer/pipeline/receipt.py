"""The delivered precision of a candidate, read back from what executes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.pipeline.subject import Subject


def delivered(subject: Subject, threads: int) -> tuple[dict[str, float], str]:
    """Return the share of multiply-accumulates by precision, and what it was read from."""
    if subject.artifact.format == "checkpoint":
        return {"fp32": 1.0}, "the module's parameters"
    if subject.artifact.format == "engine":
        about = json.loads((subject.artifact.path / "engine.json").read_text())
        return dict(about["precision"]), "the strongly typed network that the engine was built from"
    from optimizer.graph.receipt import delivered_by_cuda_provider, delivered_by_onnxruntime

    if subject.device != "cpu":
        source = "the graph's types: onnxruntime's CUDA provider computes in float between Q/DQ (not read back)"
        return delivered_by_cuda_provider(subject.artifact.file), source
    shares = delivered_by_onnxruntime(subject.artifact.file, threads)
    source = "onnxruntime's optimised graph"
    if subject.precision == "fp16" and not shares.get("fp16"):
        source += ": its CPU kernels compute float16 graphs in float32"
    return shares, source
