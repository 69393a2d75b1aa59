"""Store the weights of matrix products as 4-bit integers with a scale per block; activations stay in float.

Numeric: symmetric, -8..7, one scale per `block` neighbours along the axis that is summed over. With a block's largest
magnitude at 7, normal values in blocks of 32 / 64 / 128 keep 20.3 / 19.4 / 18.6 dB. The scale of least squared error
clips a little and keeps 21.3 / 20.5 / 19.9 dB: it is searched for on a grid, as AWQ searches its clipping, here on the
weights alone. The sentence embeddings of all-MiniLM-L6-v2 keep 12.2 / 11.5 / 11.0 dB with it, 11.3 / 10.4 / 9.3
without (60 CLINC150 sentences).
Source: ONNX DequantizeLinear 21 (block_size); Lin et al. 2023, arXiv:2306.00978, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from optimizer.errors import StageError
from optimizer.graph.affine import Float32
from optimizer.graph.index import attribute
from optimizer.graph.keep import match
from optimizer.graph.modules import modules_of
from optimizer.graph.opset import raise_opset
from optimizer.graph.placement import Placement
from optimizer.graph.qdq import PairWriter
from optimizer.graph.quantizable import Candidate
from optimizer.graph.quantize import Quantized, summarize, typed_index
from optimizer.graph.weights import layers_of, refuse_quantized

MINIMUM_OPSET = 21
LOWEST, HIGHEST = -8, 7
# Scales tried, as shares of the one that clips nothing.
_GRID = np.linspace(0.6, 1.0, 21)
_TINY = float(np.finfo(np.float32).tiny)
_AT_ONCE = 1 << 20  # weights, so that the search needs little memory beside them
_WHERE = "int4"
_OTHERS = "int4 stores the weights of MatMul and Gemm alone"


@dataclass(frozen=True, slots=True)
class Stored:
    """The quantized graph and what its weights take: bytes as float32, and as packed integers with their scales."""

    quantized: Quantized
    float_bytes: int
    stored_bytes: int


def block_scales(weight: Float32, block: int) -> Float32:
    """Return the scale of least squared error of every block of rows; 1 where all of them are zero.

    Shapes: (..., rows, columns) to (..., rows / block, columns).
    """
    *stack, rows, columns = weight.shape
    blocks = np.moveaxis(weight.reshape(*stack, rows // block, block, columns), -2, -1)
    flat = blocks.reshape(-1, block)
    step = max(1, _AT_ONCE // block)
    found = [_least_error(flat[at : at + step].astype(np.float64)) for at in range(0, len(flat), step)]
    return np.asarray(np.concatenate(found).reshape(*stack, rows // block, columns), dtype=np.float32)


def _least_error(blocks: npt.NDArray[np.float64]) -> Float32:
    unclipped = np.abs(blocks).max(axis=1) / HIGHEST
    best = np.maximum(unclipped, _TINY).astype(np.float32)
    least = np.full(len(blocks), np.inf)
    for share in _GRID:
        scales = np.maximum(unclipped * share, _TINY).astype(np.float32)
        steps = scales.astype(np.float64)[:, None]
        error = ((np.clip(np.rint(blocks / steps), LOWEST, HIGHEST) * steps - blocks) ** 2).sum(axis=1)
        better = error < least
        best[better], least[better] = scales[better], error[better]
    return np.asarray(np.where(unclipped < _TINY, 1.0, best), dtype=np.float32)


def to_int4(weight: Float32, scales: Float32) -> npt.NDArray[np.int8]:
    """Return integers from -8 to 7, half to even, with one scale per block of rows.

    Shapes: (..., rows, columns) and (..., blocks, columns) to (..., rows, columns).
    """
    block = weight.shape[-2] // scales.shape[-2]
    steps = weight.astype(np.float64) / np.repeat(scales.astype(np.float64), block, axis=-2)
    return np.asarray(np.clip(np.rint(steps), LOWEST, HIGHEST), dtype=np.int8)


def quantize_blocks(model: onnx.ModelProto, keep: Sequence[str] = (), block: int = 32) -> Stored:
    """Return a new model with 4-bit weights; `model` is changed in place and must not be used again.

    `keep` names operator types, nodes or PyTorch modules that stay in float32.
    Numeric: rows that are no multiple of `block` stay in float: TensorRT-RTX 1.7 would read other blocks than ONNX
    defines (100 rows with 4 scales as blocks of 25), onnxruntime a shorter last one.
    Raises: StageError when the graph is quantized already, has no MatMul or Gemm to quantize or an opset that cannot be
    raised to 21, or when `keep` matches nothing.
    """
    refuse_quantized(model, _WHERE, "int4")
    kept = match(keep, model.graph.node, _WHERE, modules_of(model))
    raised = raise_opset(model, MINIMUM_OPSET, _WHERE, "4-bit integers with block scales")
    index = typed_index(model)
    layers = layers_of(index, kept, weights_only=True)
    writer = _BlockWriter(index, Placement(), {})
    chosen = []
    for found in layers.candidates:
        rows = index.dims(found.weight_name)[_summed(found)]
        reason = _OTHERS if found.node.op_type not in {"MatMul", "Gemm"} else ""
        if not reason and rows % block:
            reason = f"its {rows} inputs are no multiple of block {block}"
        if reason:
            layers.left[found.node.name or found.node.output[0]] = reason
        else:
            chosen.append(found)
    if not chosen:
        left = summarize(layers.left) or ["the graph has no MatMul or Gemm"]
        raise StageError(
            f"no layer is left to quantize: {'; '.join(left)}",
            where=_WHERE,
            hint="Remove the int4 variant from the recipe: it is for models of large matrix products.",
        )
    for found in chosen:
        writer.store_weight(found, block)
    writer.rewrite(model)
    quantized = Quantized(model, layers.left, (raised,) if raised else (), frozenset(kept))
    return Stored(quantized, writer.float_bytes, writer.stored_bytes)


def _summed(found: Candidate) -> int:
    """Return the weight's axis that the product sums over."""
    if found.node.op_type == "Gemm":
        return 1 - found.axis
    return found.axis - 1


class _BlockWriter(PairWriter):
    """Writes weights as packed 4-bit integers behind a DequantizeLinear with blocks."""

    float_bytes = 0
    stored_bytes = 0

    def store_weight(self, found: Candidate, block: int) -> None:
        """Let a candidate read its weight from 4-bit integers; a shared weight is stored once.

        A Gemm's transposed weight is stored upright, which costs nothing: onnxruntime has a kernel for that form alone.
        """
        node = found.node
        turned = node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
        key = (found.weight_name, found.axis, b"")
        if key not in self.weights:
            weight = np.asarray(self.index.constant(found.weight_name), dtype=np.float32)
            upright = np.ascontiguousarray(weight.T) if turned else weight
            scales = block_scales(upright, block)
            self.weights[key] = self._dequantize_blocks(found.weight_name, upright, scales, block), scales
        if turned:
            kept = [a for a in node.attribute if a.name != "transB"]
            del node.attribute[:]
            node.attribute.extend(kept)
        self.replaced[node.output[0], found.weight] = self.weights[key][0]

    def _dequantize_blocks(self, name: str, weight: Float32, scales: Float32, block: int) -> str:
        integers = to_int4(weight, scales)
        inputs = [
            self._constant(f"{name}_int4", integers.astype(ml_dtypes.int4)),
            self._constant(f"{name}_scales", scales),
        ]
        self.float_bytes += weight.nbytes
        self.stored_bytes += (weight.size + 1) // 2 + scales.nbytes
        result = self._fresh(f"{name}_dequantized")
        self.head.append(
            onnx.helper.make_node(
                "DequantizeLinear", inputs, [result], f"{result}/dequantize", axis=weight.ndim - 2, block_size=block
            )
        )
        return result
