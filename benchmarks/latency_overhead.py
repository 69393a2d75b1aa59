"""What a call of ours costs over a bare loop, and what conversion in and out costs: one Relu, where it is seen."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from latency_build import tiny
from latency_candidates import (
    BareOnnxRuntime,
    BareOpenVino,
    BareTorch,
    Candidate,
    Feed,
    PerCallTorch,
    runner,
)
from latency_measure import openings

from optimizer.measure.latency import LatencySession, pinned
from optimizer.measure.surroundings import Watch
from optimizer.runners.onnxruntime import OnnxRuntimeRunner
from optimizer.runners.openvino import OpenVinoRunner
from optimizer.runners.torch import TorchRunner
from optimizer.runners.torch_compile import TorchCompileRunner

SIZES = {"8 floats": 8, "a picture": 3 * 224 * 224}


class Infer:
    """Times `infer` instead of the bound call: from numpy to numpy."""

    def __init__(self, opened: Any) -> None:
        self.opened = opened

    def bind(self, feed: Feed) -> Callable[[], Any]:
        return lambda: self.opened.infer(feed)


def overhead(folder: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Time bound call, bare loop and infer of each runtime around one Relu, alternating, one thread. Microseconds."""
    import torch

    kinds: dict[str, tuple[Any, Any, str]] = {
        "torch": (runner(TorchRunner), BareTorch, "module"),
        "torch_compile": (runner(TorchCompileRunner), lambda p, n: BareTorch(p, n, compiled=True), "module"),
        "onnxruntime": (runner(OnnxRuntimeRunner), BareOnnxRuntime, "fp32"),
        "openvino": (runner(OpenVinoRunner), BareOpenVino, "fp32"),
    }
    found: dict[str, Any] = {}
    with pinned(1) as processors, Watch(processors) as watch, torch.inference_mode():
        for size, elements in SIZES.items():
            artifacts = tiny(folder / f"tiny-{elements}", elements)
            feeds = {1: {"x": np.linspace(-1, 1, elements, dtype=np.float32)[None]}}
            for name, (ours, bare, artifact) in kinds.items():
                held = name == "torch_compile"
                rows = {
                    "bound": Candidate("bound", "ours", artifact, ours, held=held),
                    "bare": Candidate("bare", "bare", artifact, bare, held=held),
                    "infer": Candidate("infer", "ours", artifact, _inferring(ours)),
                }
                if name == "torch":
                    rows["per call"] = Candidate("per call", "bare", artifact, PerCallTorch)
                session = openings(rows, artifacts, 1, feeds, (seconds, watch))
                found.setdefault(name, {})[size] = costs(session)
    return found


def _inferring(ours: Callable[[pathlib.Path, int], Any]) -> Callable[[pathlib.Path, int], Any]:
    """A runner that stays open is closed with the process."""
    return lambda path, threads: Infer(ours(path, threads).__enter__())


def costs(session: LatencySession) -> dict[str, Any]:
    """Return p50 of each row and the differences that matter. Units: microseconds."""
    series = {name: per_batch[1] for name, per_batch in session.series.items()}
    found: dict[str, Any] = {f"{name}_us": 1000 * one.latency().p50 for name, one in series.items()}
    found["over_bare_us"] = apart(series["bound"], series["bare"])
    found["conversion_us"] = apart(series["infer"], series["bound"])
    if "per call" in series:
        found["over_bare_per_call_us"] = apart(series["bound"], series["per call"])
    found["disturbed"] = series["bound"].detail()["disturbed"]
    found["surroundings"] = session.surroundings[1]["complaints"]
    return found


def apart(above: Any, below: Any) -> dict[str, Any]:
    """Return the median over rounds of how far two rows' medians lie apart, and the least and most of any opening."""
    each = 1000 * (np.median(above.counted_ms, axis=1) - np.median(below.counted_ms, axis=1))
    ends = np.cumsum(above.counted_openings)[:-1]
    per_opening = [float(np.median(part)) for part in np.split(each, ends) if len(part)]
    return {"median": float(np.median(each)), "openings": [min(per_opening), max(per_opening)]}
