"""The delivered precision of a candidate, read back from what executes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import StageError

if TYPE_CHECKING:
    from optimizer.pipeline.subject import Subject

Shares = dict[str, float]

_SHOWN = 3  # notes told in one sentence
_TORCH_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
_TORCH_NAMES |= dict.fromkeys(("int8", "uint8", "qint8", "quint8"), "int8")


def delivered(subject: Subject, threads: int) -> tuple[Shares, str]:
    """Return the share of multiply-accumulates by precision, and what it was read from.

    Of a torch module, whose operators are not known, the share of its weights.
    """
    if subject.artifact.format == "checkpoint":
        shares = weight_shares(subject.artifact.path)
        source = "the dtypes of the module's weights, by element" if shares else "the module has no weights"
        return shares, source + _tf32(shares, subject.device, "float32 convolutions")
    if subject.artifact.format == "engine":
        about = json.loads((subject.artifact.path / "engine.json").read_text(encoding="utf-8"))
        source = "the layer table of the engine's build"
        source += _tf32(about["precision"], "cuda:0", "float32") + _told(about.get("precision_notes", ()))
        return dict(about["precision"]), source
    return _of_graph(subject, threads)


def check_delivered(subject: Subject, shares: Mapping[str, float], source: str, at_least: float) -> None:
    """Refuse int8 that OpenVINO compiles into less of it than the recipe accepts.

    What onnxruntime and TensorRT make of a graph is checked where it is built.
    Raises: StageError with both shares.
    """
    found = shares.get("int8", 0.0)
    if subject.runtime == "openvino" and subject.executes and subject.precision == "int8" and found < at_least:
        raise StageError(
            f"OpenVINO computes {found:.1%} of the multiply-accumulates in int8, at_least asks for {at_least:.1%} "
            f"({source})",
            where=subject.name,
            hint="Leave this target out of the variant (targets:), or accept less with at_least:.",
        )


def _of_graph(subject: Subject, threads: int) -> tuple[Shares, str]:
    """An ONNX graph, as the runtime compiles or interprets it."""
    from optimizer.graph.receipt import cuda_receipt, graph_receipt, onnxruntime_receipt

    if subject.device != "cpu":
        receipt = cuda_receipt(subject.artifact.file)
        source = "the graph's types: onnxruntime's CUDA provider computes in float between Q/DQ (not read back)"
        return receipt.shares, source + _tf32(receipt.shares, subject.device, "float32") + _told(receipt.notes)
    if not subject.executes:  # bfloat16 on the CPU: onnxruntime does not even load it; or a runtime is not installed
        receipt = graph_receipt(subject.artifact.file)
        return receipt.shares, "the graph's types: it does not execute here" + _told(receipt.notes)
    if subject.runtime == "openvino":
        from optimizer.graph.openvino_receipt import openvino_receipt

        receipt = openvino_receipt(subject.artifact.file, threads)
        source = "the model that OpenVINO compiled" + _without_kernels(subject.precision, receipt.shares)
        return receipt.shares, source + _told(receipt.notes)
    receipt = onnxruntime_receipt(subject.artifact.file, threads)
    source = "onnxruntime's optimised graph"
    if subject.precision == "fp16" and not receipt.shares.get("fp16"):
        source += ": its CPU kernels compute float16 graphs in float32"
    if subject.precision == "fp8" and not receipt.shares.get("fp8"):
        source += ": its CPU kernels compute in float32 between FP8 Q/DQ"
    return receipt.shares, source + _told(receipt.notes)


def _without_kernels(precision: str, shares: Shares) -> str:
    """Why OpenVINO computes in float32 what the graph has in less."""
    if precision in ("fp16", "bf16") and not shares.get(precision):
        return f": this CPU has no {precision} arithmetic that it uses, so it computes in float32"
    if precision == "fp8" and not shares.get(precision):
        return ": it computes in float32 between FP8 Q/DQ"
    return ""


def weight_shares(folder: Path) -> Shares:
    """Return the share of each dtype among the elements of a module's parameters; empty where it has none."""
    from optimizer.checkpoint import load_module

    sums: dict[str, int] = {}
    for parameter in load_module(folder).module.parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        name = _TORCH_NAMES.get(dtype, dtype)
        sums[name] = sums.get(name, 0) + parameter.numel()
    total = sum(sums.values())
    return {name: sums[name] / total for name in sorted(sums)} if total else {}


def _tf32(shares: Shares, device: str, what: str) -> str:
    """On Ampere and later float32 is the type, not what the tensor cores compute in."""
    return f"; {what} in TF32 where the library's defaults allow it" if device != "cpu" and "fp32" in shares else ""


def _told(notes: Sequence[str]) -> str:
    more = f"; and {len(notes) - _SHOWN} more" if len(notes) > _SHOWN else ""
    return "".join(f"; {note}" for note in notes[:_SHOWN]) + more
