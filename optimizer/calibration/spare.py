"""Choose the layers that stay in float: those whose int8 costs the outputs most, within a share of the work.

First and last layers are no special case: what each layer's rounding does to the outputs is measured. On ResNet-20 the
stem and the classifier, 1.1 % of the multiply-accumulates, make up a third of the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from optimizer.calibration import paired
from optimizer.calibration.probe import Reference, decibels
from optimizer.data.samples import Samples
from optimizer.graph.cost import count
from optimizer.graph.index import node_key
from optimizer.graph.quantizable import COMPUTE
from optimizer.graph.quantize import Quantized

# Below this a difference of the outputs' SQNR is noise of the few samples.
_NOISE_DB = 0.05

Progress = Callable[[int, int], None]
Quantizer = Callable[[Sequence[str]], Quantized]  # with these layers in float


@dataclass(frozen=True, slots=True)
class Spared:
    """Layers to leave in float, their share of the multiply-accumulates, and the outputs' SQNR in dB without and with.

    The numbers come from samples that did not choose.
    """

    layers: tuple[str, ...]
    share: float
    before_db: float
    after_db: float

    def sentence(self) -> str:
        """Say what stays in float, and what for."""
        if not self.layers:
            return "float_share: no layer gains the outputs anything in float"
        named = ", ".join(self.layers[:4]) + (f" and {len(self.layers) - 4} more" if len(self.layers) > 4 else "")
        return (
            f"float_share: {named} stay in float, {self.share:.1%} of the multiply-accumulates: SQNR of the outputs "
            f"{self.before_db:.1f} -> {self.after_db:.1f} dB on other calibration samples"
        )


def spare(
    float32: onnx.ModelProto,
    quantize: Quantizer,
    budget: float,
    data: tuple[Samples, Samples],
    progress: Progress,
) -> Spared:
    """Return the layers that gain the outputs most in float; together at most `budget` of the multiply-accumulates.

    Each layer is tried alone; errors of layers add up nearly independently, so they are then taken by gain in error
    power per multiply-accumulate, and each is kept only where it gains beside those before it. `data` are the samples
    that choose and others that judge: where those gain no more than by chance, no layer is spared.
    """
    choosing, judging = data
    whole = quantize(())
    counted = count(float32)
    macs = counted.macs
    total = sum(macs.values())
    layers = {node_key(node) for node in float32.graph.node if node.op_type in COMPUTE} - whole.left.keys()
    # What cannot be counted may be more than the budget, however little of it is known.
    sized = layers - counted.uncounted
    candidates = [name for name, work in macs.items() if name in sized and 0 < work <= budget * total]
    if len(layers) < 2:
        candidates = []  # there would be nothing left to quantize
    with Reference(float32, choosing) as reference:

        def share_of_error(spared: Sequence[str]) -> float:
            return float(10 ** (-reference.sqnr_db_of(quantize(spared).model) / 10))

        base = share_of_error(())
        gains: dict[str, float] = {}
        for number, name in enumerate(candidates):
            gains[name] = base - share_of_error((name,))
            progress(number + 1, len(candidates))
        spared = _greedy(
            sorted(candidates, key=lambda n: gains[n] / macs[n], reverse=True), gains, macs, budget * total
        )
        taken: list[str] = []
        for name in spared[: len(layers) - 1]:
            now = share_of_error((*taken, name))
            if now < base * 10 ** (-_NOISE_DB / 10):
                taken.append(name)
                base = now
    with Reference(float32, judging) as others:
        plain, shares = (others.shares_of(quantize(k).model) for k in ((), tuple(taken)))
    before, after = decibels(plain), decibels(shares)
    # In float everywhere the error is none, which needs no interval.
    if not taken or (after < math.inf and not paired.gains(plain, {"spared": shares})["spared"].low > 0):
        return Spared((), 0.0, before, before)
    return Spared(tuple(taken), sum(macs[n] for n in taken) / total, before, after)


def _greedy(ordered: Sequence[str], gains: Mapping[str, float], macs: Mapping[str, int], budget: float) -> list[str]:
    """Fill the budget in this order with what gains anything."""
    found, spent = [], 0
    for name in ordered:
        if gains[name] > 0 and spent + macs[name] <= budget:
            found.append(name)
            spent += macs[name]
    return found
