"""Learn a quantized graph on its calibration samples: rounding, biases and scales that bring its outputs to float32's.

What is minimised is the squared error of the graph's outputs, so that layers make up for one another's rounding. The
graph's structure stays: what is delivered in int8 does not change.
Source: Nagel et al. 2020, arXiv:2004.10568 (nearest is not the best rounding); Hubara et al. 2020, arXiv:2006.10518
(weights and scales learned on a calibration set); Esser et al. 2020, arXiv:1902.08153 (learned step size); Nagel et al.
2019, arXiv:1906.04721, section 4.2 (bias correction).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from optimizer.calibration.barriers import all_threads
from optimizer.calibration.collect import fixed_batch
from optimizer.calibration.learning_batches import Feed, Group, LearningBatches, feed_of, groups_of, split
from optimizer.calibration.paired import Gain, gains
from optimizer.calibration.probe import OutputErrors, decibels
from optimizer.errors import StageError
from optimizer.graph.differentiable import TorchGraph, fake_quantize
from optimizer.graph.differentiable_paths import check_gradients
from optimizer.graph.index import node_key
from optimizer.graph.learnable import Learnable, find, write_back

if TYPE_CHECKING:
    from optimizer.data.samples import Array, Samples
    from optimizer.runtime.session import Session

BATCH = 32
# Autograd keeps about three tensors for each activation.
_BUDGET_BYTES = 1 << 30
_KEPT = 3
# Shares of a quantization step (weights, biases) and of a scale that one update moves at most, at the start.
_WEIGHT_RATE, _SCALE_RATE = 0.003, 0.003
# The interpretation in torch against itself in another order of summation; a wrong operator differs in the first digit.
_AGREES_DB = 60.0
_HINT = "Leave rounding: learned and bias_correction out of the variant's options. Please report the model."
# A scale that is learned stays above this share of what calibration found: it must not reach zero.
_LEAST_SCALE = 0.1

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Learning:
    """What is done: first the mean of every layer's error leaves its bias, then so many passes learn everything."""

    passes: int
    correct_biases: bool


@dataclass(frozen=True, slots=True)
class Refined:
    """What learning did to the outputs: their SQNR against float32 on held-out samples, in dB, before and after."""

    before_db: float
    after_db: float
    gain: Gain
    learned_on: int
    held_out: int

    @property
    def kept(self) -> bool:
        """Whether it gained more than by chance: what did not is not in the graph."""
        return self.gain.low > 0


def refine(
    quantized: onnx.ModelProto,
    float32: onnx.ModelProto,
    samples: Samples,
    *,
    reference: Session,
    how: Learning,
    progress: Progress,
) -> Refined:
    """Change the constants of `quantized`, in place, so that its outputs come closer to those of `float32`.

    `reference` executes `float32`: torch's reading of the graph is held against it first. What does not improve
    held-out samples by more than chance is not kept. These are read once, when all is learned: nothing is chosen by
    them. A graph of fixed batch gets its last batch filled with samples of the same.
    Memory: what a batch's activations and their gradients take, by a budget for each shape; samples are read again in
    every pass.
    Numeric: deterministic for a number of threads. Raises: StageError for an operator that is not known or lets no
    gradient through, too few samples, or a graph without a float output.
    """
    for model in (float32, quantized):
        check_gradients(model, learned=how.passes > 0)
    learnable = find(quantized, float32)
    pair = _Pair(TorchGraph(float32), TorchGraph(quantized), learnable)
    groups = groups_of(samples)
    held, rest = split(len(samples))
    with all_threads() as barriers:
        fixed = fixed_batch(reference.inputs)
        one = feed_of(samples, [int(rest[0])] * (fixed or 1))
        pair.check_reading(reference, one)
        data = LearningBatches(samples, groups, fixed, _sizes(pair.float32, samples, groups, fixed))
        before = pair.shares(barriers.watching(data.judging(held)))
        if how.correct_biases:
            _correct_biases(pair, data.largest(rest))
        optimizer, schedule = _optimizer(pair, how.passes * data.steps(rest))
        for number in range(how.passes):
            shuffled = np.random.default_rng(number + 1).permutation(rest)
            for feed in barriers.watching(data.of(shuffled)):
                optimizer.zero_grad()
                pair.loss(feed).backward()
                optimizer.step()
                pair.bound_scales()
                schedule.step()
            progress(number + 1, how.passes)
        after = pair.shares(barriers.watching(data.judging(held)))
    # Judged once, at the end: the best of many passes on few samples would be chance.
    gain = gains(before, {"learned": after})["learned"]
    refined = Refined(decibels(before), decibels(after), gain, len(rest), len(held))
    if refined.kept:
        write_back(quantized, learnable, {n: t.detach().numpy() for n, t in pair.parameters.items()})
    return refined


class _Pair:
    """The float32 graph and the quantized one, with everything that may change in it as torch parameters."""

    def __init__(self, float32: TorchGraph, quantized: TorchGraph, learnable: Learnable) -> None:
        import torch

        self.float32, self.quantized, self.learnable = float32, quantized, learnable
        self.outputs = [name for name in quantized.outputs if name in float32.outputs]
        start: dict[str, Any] = {w.result: torch.from_numpy(w.value.copy()) for w in learnable.weights}
        start |= {b.result: torch.from_numpy(b.value.copy()) for b in learnable.biases.values()}
        start |= {name: quantized.constants[name].clone() for name in learnable.scales}
        self.parameters = {name: torch.nn.Parameter(value) for name, value in start.items()}

    def learned(self) -> dict[str, Any]:
        """Return what stands in for constants and for the tensors that are dequantized from them."""
        constants, values = self.quantized.constants, dict(self.parameters)
        for weight in self.learnable.weights:
            shape = [-1 if i == weight.axis else 1 for i in range(weight.value.ndim)]
            scale, zero_point = (constants[name].reshape(shape) for name in (weight.scale, weight.zero_point))
            values[weight.result] = fake_quantize(self.parameters[weight.result], scale, zero_point)
        return values

    def both(self, feed: Feed, learned: Mapping[str, Any]) -> list[tuple[Any, Any]]:
        """Return each float output of float32 with that of the quantized graph."""
        import torch

        with torch.no_grad():
            expected = self.float32.run(feed)
        found = self.quantized.run(feed, learned)
        pairs = [(expected[n], found[n]) for n in self.outputs if expected[n].is_floating_point()]
        if not pairs:
            raise StageError("the graph has no float output to learn from", where="learning")
        return pairs

    def check_reading(self, reference: Session, feed: Feed) -> None:
        """Hold torch's reading of the float32 graph against an execution of it.

        Raises: StageError, naming the output that differs.
        """
        import torch

        expected = reference.infer(feed)
        try:
            with torch.no_grad():
                found = self.float32.run(feed)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            said = " ".join(str(error).split())[:200]
            raise StageError(
                f"the float32 graph cannot be read in torch: {said}", where="learning", hint=_HINT
            ) from error
        for name in self.outputs:
            exact, read = expected[name].astype(np.float64), found[name].numpy().astype(np.float64)
            noise = float(((exact - read) ** 2).sum())
            limit = 10 ** (-_AGREES_DB / 10) * float((exact**2).sum())
            if expected[name].dtype.kind == "f" and not noise <= limit:  # NaN is no agreement
                raise StageError(
                    f"output '{name}' of the float32 graph comes out otherwise in torch than in onnxruntime",
                    where="learning",
                    hint=_HINT,
                )

    def bound_scales(self) -> None:
        """Keep every learned scale well above zero."""
        for name in self.learnable.scales:
            self.parameters[name].data.clamp_(min=_LEAST_SCALE * float(self.quantized.constants[name]))

    def loss(self, feed: Feed) -> Any:
        """Return the sum over the outputs of squared error by power: one output's unit is not another's."""
        terms = [((y - x) ** 2).mean() / (x**2).mean().clamp_min(1e-12) for x, y in self.both(feed, self.learned())]
        return sum(terms[1:], terms[0])

    def shares(self, judging: Iterable[tuple[Feed, Array]]) -> Array:
        """Return what each sample adds to the share of error of the outputs."""
        import torch

        errors = OutputErrors()
        with torch.no_grad():
            learned = self.learned()
            for feed, owners in judging:
                expected, found = (
                    {str(number): value.numpy() for number, value in enumerate(side)}
                    for side in zip(*self.both(feed, learned), strict=True)
                )
                errors.add(expected, found, owners)
        return errors.shares()


def _optimizer(pair: _Pair, steps: int) -> tuple[Any, Any]:
    """Adam, whose updates are about as large as the rate: each parameter's is a share of its own step or scale."""
    import torch

    groups: list[dict[str, Any]] = []
    weights = {w.result: float(pair.quantized.constants[w.scale].mean()) for w in pair.learnable.weights}
    typical = float(np.median(list(weights.values()))) if weights else 1.0
    for name, parameter in pair.parameters.items():
        if name in pair.learnable.scales:
            rate = _SCALE_RATE * float(parameter.detach())
        else:
            rate = _WEIGHT_RATE * weights.get(name, typical)
        groups.append({"params": [parameter], "lr": rate})
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
    return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1))


def _correct_biases(pair: _Pair, feed: Feed) -> None:
    """Take the mean of each layer's error, over this batch and all positions, out of its bias, first layer first."""
    import torch

    biases = {bias.added_by: bias for bias in pair.learnable.biases.values()}
    means: dict[str, Any] = {}

    def channel_mean(node: onnx.NodeProto, value: Any) -> Any:
        channels = 1 if node.op_type.startswith("Conv") else value.ndim - 1
        return value.mean([i for i in range(value.ndim) if i != channels])

    def note(node: onnx.NodeProto, value: Any) -> Any:
        if node_key(node) in biases:
            means[node_key(node)] = channel_mean(node, value)
        return value

    def correct(node: onnx.NodeProto, value: Any) -> Any:
        if node_key(node) not in means:
            return value
        shift = means[node_key(node)] - channel_mean(node, value)
        pair.parameters[biases[node_key(node)].result] += shift
        return (
            value + shift.reshape([-1, *[1] * (value.ndim - 2)]) if node.op_type.startswith("Conv") else value + shift
        )

    with torch.no_grad():
        pair.float32.run(feed, observe=note)
        pair.quantized.run(feed, pair.learned(), observe=correct)


def _sizes(graph: TorchGraph, samples: Samples, groups: Sequence[Group], fixed: int | None) -> dict[Group, int]:
    """Return how many samples of each shape make a batch: its activations fit the budget, measured on one of them."""
    if fixed:
        return dict.fromkeys(groups, fixed)
    first = {group: index for index, group in reversed(list(enumerate(groups)))}
    return {group: _batch_size(graph, feed_of(samples, [index])) for group, index in first.items()}


def _batch_size(graph: TorchGraph, feed: Feed) -> int:
    import torch

    held = 0

    def measure(node: onnx.NodeProto, value: Any) -> Any:
        nonlocal held
        del node
        held += sum(v.nbytes for v in (value if isinstance(value, tuple) else (value,)))
        return value

    with torch.no_grad():
        graph.run(feed, observe=measure)
    return max(1, min(BATCH, _BUDGET_BYTES // max(_KEPT * held, 1)))
