"""A run's folder as the pipeline leaves it, with a classifier of one matrix product; for the tests of bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from optimizer.digest import sha256_file

WEIGHTS = np.random.default_rng(7).normal(size=(12, 3)).astype(np.float32)
PICTURES = np.random.default_rng(8).integers(0, 256, size=(5, 2, 2, 3), dtype=np.uint8)
STEPS = [{"scale": 0.00390625}, {"normalize": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}, {"to_chw": True}]


def classifier(path: Path, *, bias: float = 0.0) -> Path:
    """Write an ONNX graph: flatten, multiply, add, and the index of the largest as a second output."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 2, 2])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["batch"]),
        ],
        [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(np.full(3, bias, np.float32), "b")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def images() -> np.ndarray:
    """The pictures as STEPS make them, computed here by hand."""
    scaled = PICTURES.astype(np.float32) * np.float32(0.00390625)
    mean, std = (np.float32(v) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    return np.ascontiguousarray(((scaled - mean) / std).transpose(0, 3, 1, 2))


def logits() -> np.ndarray:
    return images().reshape(5, -1) @ WEIGHTS


def candidate(name: str, status: str = "measured", **more: Any) -> dict[str, Any]:
    variant, runtime = name.split("@")
    return {
        "name": name,
        "variant": variant,
        "runtime": runtime,
        "device": "cpu",
        "status": status,
        "precision": {"requested": variant, "delivered": {variant: 1.0}, "source": "the graph"},
        "accuracy": {"top1": {"value": 0.9, "samples": 100, "ci95": [0.8, 0.95]}},
        "latency_ms": {
            "1": dict.fromkeys(["p50", "p90", "p99", "mean"], 0.1) | {"samples": 9, "warmup": 3, "stable": True}
        },
        **more,
    }


def write_run(run: Path, candidates: list[dict[str, Any]] | None = None, *, labels: bool = True) -> Path:
    """Write the folder; every candidate that is not in PyTorch has the same graph."""
    candidates = candidates or [candidate("fp32@torch"), candidate("fp32@onnxruntime"), candidate("int8@onnxruntime")]
    golden = run / "golden"
    golden.mkdir(parents=True)
    np.savez(golden / "inputs.npz", image=images())
    stored: dict[str, Any] = {}
    for each in candidates:
        name, runtime = each["name"], each["runtime"]
        kind = {"torch": "checkpoint", "onnxruntime": "onnx"}.get(runtime, "engine")
        folder = run / "artifacts" / name
        if kind == "onnx":
            classifier(folder / "model.onnx")
        elif kind == "engine":
            folder.mkdir(parents=True)
            (folder / "engine.plan").write_bytes(b"not really an engine" * 20)
            (folder / "engine.json").write_text(json.dumps({"compute_capabilities": ["8.6", "8.9"]}))
        np.savez(golden / f"{name}.npz", logits=logits(), best=logits().argmax(1))
        stored[name] = {"artifact": f"artifacts/{name}", "format": kind, "runtime": runtime, "device": "cpu"}
    (run / "preprocessing.json").write_text(json.dumps({"image": STEPS}))
    if labels:
        (run / "labels.json").write_text(json.dumps(["cat", "dog", "élan"]))
    _write_documents(run, candidates, stored)
    return run


def _write_documents(run: Path, candidates: list[dict[str, Any]], stored: dict[str, Any]) -> None:
    files = {p.relative_to(run).as_posix(): sha256_file(p) for p in sorted(run.rglob("*")) if p.is_file()}
    record = {
        "schema": 1,
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 2, 2]}],
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": ["batch", 3]},
            {"name": "best", "dtype": "int64", "shape": ["batch"]},
        ],
        "profile": {"batch": {"min": 1, "opt": 2, "max": 8}},
        "batch_axis": "batch",
        "candidates": stored,
        "files": files,
    }
    report = {
        "schema_version": 1,
        "recipe": {"name": "tiny", "path": "recipe.yaml", "sha256": "0" * 64},
        "environment": {
            "python": "3.11",
            "platform": "Linux",
            "cpu": "a processor",
            "cores": 2,
            "memory_bytes": 1 << 30,
            "gpu": None,
            "packages": {"onnxruntime": "1.31.1", "tensorrt-rtx": "1.7.1.116"},
        },
        "baseline": candidates[0]["name"],
        "candidates": candidates,
        "stages": [],
        "pareto": [],
        "recommended": {"cpu": "int8@onnxruntime"},
        "verdict": {"status": "pass"},
        "created": "2026-01-02T03:04:05Z",
    }
    (run / "run.json").write_text(json.dumps(record))
    (run / "report.json").write_text(json.dumps(report))
