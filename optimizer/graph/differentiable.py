"""An ONNX graph as a differentiable function in torch: what learning through a quantized graph needs.

Positions, indices and masks are computed with it, and have no gradient; `differentiable_paths` says before anything is
run whether what is learned reaches an output. A graph with an operator that is not in the tables is refused, all of it
named. Whoever uses it compares the result with onnxruntime's first: that is what holds the tables to the standard.
Source: ONNX operator reference, opsets 13 to 23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.errors import StageError
from optimizer.graph.differentiable_operators import OPERATORS, Inputs
from optimizer.graph.differentiable_paths import check_known
from optimizer.graph.index import attribute, node_key

if TYPE_CHECKING:
    import torch

# Sees every node with its output, and returns what stands in its place.
Observer = Callable[[onnx.NodeProto, Any], Any]


class TorchGraph:
    """The main graph of a model; `constants` are its initializers, and may be replaced by what is learned."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import torch

        self.inputs = [i.name for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}]
        self.outputs = [o.name for o in model.graph.output]
        self.nodes = [n for n in model.graph.node if n.op_type != "Constant"]
        check_known(self.nodes)
        # QuantizeLinear and DequantizeLinear are evaluated as one: integers have no gradient.
        self.quantizers = {n.output[0]: n for n in self.nodes if n.op_type == "QuantizeLinear"}
        self.constants: dict[str, torch.Tensor] = {}
        for tensor in model.graph.initializer:
            self.constants[tensor.name] = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        for node in model.graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = torch.from_numpy(_constant(node))
        self._last = self._last_reads()

    def run(
        self, feed: Mapping[str, Any], learned: Mapping[str, Any] | None = None, observe: Observer | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the outputs by name; a tensor in `learned` stands in for the constant or the output of that name."""
        import torch

        known = {**self.constants, **(learned or {})}
        values: dict[str, Any] = {n: torch.from_numpy(np.ascontiguousarray(feed[n])) for n in self.inputs}

        def read(name: str) -> Any:
            return (values[name] if name in values else known[name]) if name else None

        for position, node in enumerate(self.nodes):
            if node.op_type != "QuantizeLinear" and not all(name in known for name in node.output):
                found = self._evaluate(node, read)
                found = found if observe is None else observe(node, found)
                outputs = found if isinstance(found, tuple) else (found,)
                values.update((name, value) for name, value in zip(node.output, outputs, strict=False) if name)
            for name in self._last.get(position, ()):
                values.pop(name, None)
        return {name: read(name) for name in self.outputs}

    def _evaluate(self, node: onnx.NodeProto, read: Callable[[str], Any]) -> Any:
        made = self.quantizers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if made is not None:
            return fake_quantize(*(read(name) for name in made.input))
        inputs: Inputs = [read(name) for name in node.input]
        return (
            _dequantize(node, *inputs) if node.op_type == "DequantizeLinear" else OPERATORS[node.op_type](node, inputs)
        )

    def _last_reads(self) -> dict[int, list[str]]:
        """Return, by position, the tensors that no later node reads: their memory may go."""
        last: dict[str, int] = {}
        for position, node in enumerate(self.nodes):
            for name in node.input:
                last[name] = position
                if name in self.quantizers:  # read again when it is dequantized
                    last[self.quantizers[name].input[0]] = position
        found: dict[int, list[str]] = {}
        for name, position in last.items():
            if name not in self.outputs:
                found.setdefault(position, []).append(name)
        return found


def fake_quantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Round to the integers of the zero point's type and back; the gradient passes where nothing was clipped.

    Numeric: half to even, as QuantizeLinear. Without a zero point of uint8 the integers are -127..127 for a scale per
    channel (weights, see `affine`) and -128..127 for a single one.
    """
    import torch

    low, high = (0, 255) if zero_point.dtype == torch.uint8 else (-127 if scale.ndim else -128, 127)
    zero = zero_point.to(torch.float32)
    result: torch.Tensor = _rounding().apply(x, scale, low - zero, high - zero)
    return result


@lru_cache(maxsize=1)
def _rounding() -> Any:
    """Return the rounding as a function with a gradient of its own.

    Source: Esser et al. 2020, arXiv:1902.08153 (learned step size), equation 3: the scale's gradient is the rounding
    error inside the range, and the bound outside it.
    """
    import torch

    class Rounding(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, x: Any, scale: Any, low: Any, high: Any) -> Any:
            steps = x / scale
            integers = torch.clamp(torch.round(steps), low, high)
            context.save_for_backward(steps, integers, low, high)
            context.shape = scale.shape
            return integers * scale

        @staticmethod
        def backward(context: Any, gradient: Any) -> tuple[Any, ...]:
            steps, integers, low, high = context.saved_tensors
            inside = (steps >= low) & (steps <= high)
            scales = None
            if context.needs_input_grad[1]:
                scales = (torch.where(inside, integers - steps, integers) * gradient).sum_to_size(context.shape)
            return gradient * inside, scales, None, None

    return Rounding


def _dequantize(node: onnx.NodeProto, integers: Any, scale: Any, zero_point: Any = None) -> Any:
    if scale.ndim:
        shape = [1] * integers.ndim
        shape[int(attribute(node, "axis", 1))] = -1
        scale = scale.reshape(shape)
        zero_point = None if zero_point is None else zero_point.reshape(shape)
    shifted = integers if zero_point is None else integers - zero_point.to(integers.dtype)
    return shifted.to(scale.dtype) * scale


def _constant(node: onnx.NodeProto) -> Any:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        found = attribute(node, name)
        if found is not None:
            value = numpy_helper.to_array(found) if name == "value" else found
            kind = np.float32 if "float" in name else np.int64
            return np.array(value) if name == "value" else np.array(value, dtype=kind)
    raise StageError(f"the Constant '{node_key(node)}' holds neither numbers nor a tensor", where="learning")
