"""What real data says about each tensor, and which nodes must or may change precision for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from optimizer.graph.facts import GraphFacts
from optimizer.graph.formats import NarrowFormat
from optimizer.graph.index import attribute, node_key
from optimizer.graph.operators import FLOAT, SIZED_SUMS, terms

# Calibration has not seen every input: this factor is left between what it saw and the end of the range.
MARGIN = 2.0
# Ordinary rounding to float16 leaves 71 dB. Where the smallest steps leave less than this of a tensor, it vanishes.
MIN_SQNR_DB = 50.0
# exp(x + e) = exp(x) * (1 + e): rounding an argument by more than this much changes what an exponential returns.
MAX_EXPONENT_ERROR = 1 / 8


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """One tensor over all samples: finite values only, for an infinite one is infinite in every format."""

    largest: float  # magnitude
    highest: float  # signed
    nonzero: int
    small_noise: float  # worst batch: energy of float16's rounding of subnormal values over the energy of all values
    rms: float  # of the nonzero values of that batch
    coarse: int  # nonzero values below 2^-18, where float16 has fewer than 7 bits left
    lost: int  # nonzero values that float16 makes zero
    whole: bool  # nothing but whole numbers


Measured = Mapping[str, Magnitudes]


def readers_of_digits(facts: GraphFacts) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the tensors that are divisors, roots or logarithms, and those that are exponents, each with a reader."""
    divisors: dict[str, str] = {}
    exponents: dict[str, str] = {}
    for node in facts.nodes:
        if node.op_type == "Div" and len(node.input) == 2:
            divisors.setdefault(node.input[1], node_key(node))
        elif node.op_type in ("Sqrt", "Reciprocal", "Log"):
            divisors.setdefault(node.input[0], node_key(node))
        elif node.op_type == "Pow":
            power = exponent(facts, node)
            if power is None or power < 0 or not power.is_integer():
                divisors.setdefault(node.input[0], node_key(node))
        elif node.op_type in ("Exp", "Softmax", "LogSoftmax", "ReduceLogSumExp"):
            exponents.setdefault(node.input[0], node_key(node))
    return divisors, exponents


def exponent(facts: GraphFacts, node: onnx.NodeProto) -> float | None:
    """Return the constant exponent of a Pow, or None."""
    values = facts.constant(node.input[1])
    return float(values.flat[0]) if values is not None and values.size == 1 else None


class Judgement:
    """Holds each node's tensors against a narrow format."""

    def __init__(self, facts: GraphFacts, measured: Measured, narrow: NarrowFormat) -> None:
        self.facts = facts
        self.measured = measured
        self.narrow = narrow
        self.divisors, self.exponents = readers_of_digits(facts)

    def reason(self, node: onnx.NodeProto, inputs: frozenset[int], outputs: frozenset[int]) -> str | None:
        """Return why the data forbids the node to read and write these ports in the narrow format, or None."""
        for port in sorted(outputs):
            if fault := self.fault(node.output[port]):
                return f"its result {fault}"
        for port in sorted(inputs):
            if fault := self.fault(node.input[port]):
                return f"its input '{node.input[port]}' {fault}"
        return self._inner_sum(node)

    def fault(self, name: str) -> str | None:
        """Return what the narrow format cannot hold of a tensor, with the number, or None."""
        seen = self.measured.get(name)
        if seen is None or not seen.nonzero:
            return None
        narrow = self.narrow
        if seen.largest * MARGIN > narrow.largest:
            left = "" if seen.largest > narrow.largest else ", and half of that is left to inputs not seen"
            ends = f"{narrow.name} ends at {number(narrow.largest)}"
            return f"reaches {number(seen.largest)} on calibration data; {ends}{left}"
        if seen.whole and seen.largest > narrow.exact_integers:
            limit = number(narrow.exact_integers)
            return f"holds whole numbers up to {number(seen.largest)}; {narrow.name} is exact up to {limit}"
        if name in self.exponents and _half_step(seen.highest, narrow) > MAX_EXPONENT_ERROR:
            step = number(2 * _half_step(seen.highest, narrow))
            return (
                f"reaches {number(seen.highest)} on calibration data, where {narrow.name} has steps of {step}: "
                f"too coarse for the exponential '{self.exponents[name]}'"
            )
        return None if narrow.has_range_of_float32 else self._vanishing(name, seen)

    def _vanishing(self, name: str, seen: Magnitudes) -> str | None:
        if name in self.divisors and seen.coarse:
            share = percent(seen.coarse / seen.nonzero)
            magnifies = f"'{self.divisors[name]}' magnifies what {self.narrow.name} loses there"
            return f"falls below 2^-18 in {share} of its values on calibration data: {magnifies}"
        if seen.small_noise > 10 ** (-MIN_SQNR_DB / 10):
            lost = percent(seen.lost / seen.nonzero)
            return (
                f"is as small as {seen.rms:.2g} (rms) on calibration data; {self.narrow.name} has steps of 6e-08 there "
                f"and makes {lost} of it zero"
            )
        return None

    def _inner_sum(self, node: onnx.NodeProto) -> str | None:
        seen = self.measured.get(node.input[0]) if node.op_type in SIZED_SUMS else None
        if seen is None:
            return None
        length = terms(node, self.facts.shapes.get(node.input[0]), axes(self.facts, node))
        if length is None or length * seen.largest <= self.narrow.largest:
            return None
        return (
            f"adds up {length} values of up to {number(seen.largest)} on calibration data: the sum may pass "
            f"{number(self.narrow.largest)} inside"
        )

    def is_harmless(self, node: onnx.NodeProto) -> bool:
        """Whether data shows that an operator which may leave the range does not, and theory that digits suffice.

        Numeric: a function multiplies the relative error of x by |x f'(x) / f(x)|: at most 1 for Reciprocal and
        Softplus above zero, |p| for x^p, |x| for exp(x). What is at most 4 costs two bits.
        """
        names = [name for name in (node.input[0], node.output[0]) if name not in self.facts.initializers]
        if any(name not in self.measured or self.fault(name) for name in names):
            return False
        if node.op_type == "Pow":
            power = exponent(self.facts, node)
            return power is not None and abs(power) <= 4
        if node.op_type in ("Exp", "Softplus"):
            return self.measured[node.input[0]].largest <= 4
        return bool(node.op_type == "Reciprocal")

    def within(self, name: str) -> bool:
        """Whether the tensor was measured and lies within the range."""
        return name in self.measured and self.fault(name) is None

    def reach(self, name: str) -> str:
        """Return the largest magnitude measured, in words."""
        return f"stays within {number(self.measured[name].largest)} on calibration data"


def axes(facts: GraphFacts, node: onnx.NodeProto) -> list[int] | None:
    """Return the axes of a reduction, None for all of them or where they are computed."""
    listed = attribute(node, "axes")
    if listed is None and node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1]:
        constant = facts.constant(node.input[1])
        listed = None if constant is None else constant.tolist()
    return [int(axis) for axis in listed] if isinstance(listed, list) else None


def float_activations(facts: GraphFacts) -> list[str]:
    """Return the computed float32 tensors that some node reads or writes, in the order of the graph."""
    inputs = [value.name for value in facts.model.graph.input]
    computed = [name for node in facts.nodes for name in node.output]
    return [name for name in (*inputs, *computed) if facts.types.get(name) == FLOAT]


def number(value: float) -> str:
    """Return a number as a person writes it: 81,234 or 0.031 or 3.39e+38."""
    if value == 0 or 1e-3 <= abs(value) < 1e9:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Return a share in percent; what is not zero does not read as zero."""
    return f"{share:.0%}" if share >= 0.005 else f"{share:.2g}"


def _half_step(value: float, narrow: NarrowFormat) -> float:
    """Return half the distance between two numbers of the format at a positive value: rounding errs by as much."""
    return math.ldexp(1.0, math.frexp(value)[1] - narrow.bits - 1) if value > 0 else 0.0
