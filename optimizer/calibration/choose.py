"""Choose each activation's calibration method by what it does to the graph's outputs, measured on real samples.

The error of a tensor itself is no guide: least squared error per tensor made ResNet-20's logits worse (24.0 dB) than
MinMax (24.6 dB) with 56 quantized activations. So every choice is tried in the quantized graph.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx

from optimizer.calibration.paired import gains
from optimizer.calibration.probe import Reference, decibels
from optimizer.calibration.table import CalibrationTable
from optimizer.data.samples import Array, Samples
from optimizer.graph.affine import ACTIVATION
from optimizer.graph.files import copy_model, save_model
from optimizer.graph.index import GraphIndex
from optimizer.graph.learnable import shared_scales
from optimizer.graph.quantize import Quantized
from optimizer.graph.sharing import Span
from optimizer.runtime.onnx import OnnxSession
from optimizer.types import Dialect

# Below this a difference of the outputs' SQNR is noise of the few samples.
_NOISE_DB = 0.05
# What the choice must gain on other samples over the best single method: less is chance, and one method is simpler.
_GAIN_DB = 0.2
# What a recipe gets that names no method: kept where no other is better by more than chance.
DEFAULT = "percentile"
# Magnitudes this close round to the same integers but for a few.
_SAME = 0.005

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The method by tensor, and the outputs' SQNR in dB on samples that did not choose: of it, and of each method."""

    methods: Mapping[str, str]
    db: float
    uniform_db: Mapping[str, float]
    samples: int

    def sentence(self) -> str:
        """Say what was picked."""
        counts = ", ".join(f"{method} {count}" for method, count in Counter(self.methods.values()).most_common())
        alone = ", ".join(f"{method} {db:.1f}" for method, db in self.uniform_db.items())
        return (
            f"auto picked {counts}: SQNR of the outputs {self.db:.1f} dB on {self.samples} other calibration samples "
            f"(one method for all: {alone})"
        )


def choose(
    quantized: Quantized,
    float32: onnx.ModelProto,
    table: CalibrationTable,
    dialect: Dialect,
    data: tuple[Samples, Samples],
    progress: Progress,
) -> Chosen:
    """Return a method per tensor; greedy, tensor by tensor, from the best single method.

    `quantized` was made with any of the table's methods; its scales are tried out in one session. `data` are the
    samples that choose and others that judge: what is not better there by more than chance is dropped.
    Raises: StageError for a graph without a float output.
    """
    choosing, judging = data
    with (
        _Trials(quantized, table, dialect) as trials,
        Reference(float32, choosing) as chosen_by,
        Reference(float32, judging) as judged_by,
    ):
        uniform = {m: trials.sqnr_db(trials.everywhere(m), chosen_by) for m in trials.methods}
        start = max(uniform, key=lambda method: uniform[method])
        best, choice = uniform[start], dict(trials.everywhere(start))
        for number, root in enumerate(trials.roots):
            for method in trials.alternatives(root, choice[root]):
                tried = trials.sqnr_db({**choice, root: method}, chosen_by)
                if tried > best + _NOISE_DB:
                    best, choice = tried, {**choice, root: method}
            progress(number + 1, len(trials.roots))
        shares = {m: trials.shares(trials.everywhere(m), judged_by) for m in trials.methods}
        mixed = trials.shares(choice, judged_by)
    single = _single(shares, start)
    judged, db = {m: decibels(found) for m, found in shares.items()}, decibels(mixed)
    if db < judged[single] + _GAIN_DB or not gains(shares[single], {"mixed": mixed})["mixed"].low > 0:
        choice, db = dict.fromkeys(trials.roots, single), judged[single]
    each = {name: method for root, method in choice.items() for name in trials.group(root)}
    return Chosen({**dict.fromkeys(table.tensors, single), **each}, db, judged, len(judging))


def _single(shares: Mapping[str, Array], start: str) -> str:
    """Return the method for all tensors: the recipe's default, unless another that chose itself is surely better."""
    if DEFAULT not in shares or start == DEFAULT:
        return start
    return start if gains(shares[DEFAULT], {start: shares[start]})[start].low > 0 else DEFAULT


class _Trials:
    """A quantized graph whose scales and zero points are inputs: another choice is another feed."""

    def __init__(self, quantized: Quantized, table: CalibrationTable, dialect: Dialect) -> None:
        self.table = table
        self.affine = ACTIVATION[dialect]
        free = set(shared_scales(GraphIndex(quantized.model)))
        self.parameters = {root: names for root, names in quantized.parameters.items() if names[0] in free}
        self.roots = sorted(self.parameters)
        self.methods: tuple[str, ...] = tuple(next(iter(table.tensors.values())).methods)
        self._groups = quantized.groups
        self._types = {
            tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).type
            for tensor in quantized.model.graph.initializer
        }
        self._folder = tempfile.TemporaryDirectory(prefix="choose-")
        model = copy_model(quantized.model)
        self._scales_as_inputs(model.graph)
        path = Path(self._folder.name) / "model.onnx"
        save_model(model, path)
        self._session = OnnxSession(path, optimize=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.close()
        self._folder.cleanup()

    def everywhere(self, method: str) -> dict[str, str]:
        """Return the choice of one method for all tensors."""
        return dict.fromkeys(self.roots, method)

    def group(self, root: str) -> Sequence[str]:
        """Return the tensors that share this one's scale, itself included: they share its method, too."""
        return self._groups.get(root, (root,))

    def alternatives(self, root: str, current: str) -> list[str]:
        """Return the other methods whose range for this tensor differs from the current one's and from each other's."""
        tensor = self.table.tensors[root]
        seen, found = [tensor.methods[current]], []
        for method in self.methods:
            own = tensor.methods[method]
            if all(_differ(own.low, o.low) or _differ(own.high, o.high) for o in seen):
                seen.append(own)
                found.append(method)
        return found

    def sqnr_db(self, choice: Mapping[str, str], reference: Reference) -> float:
        """Return the SQNR of the float outputs against the float32 graph, in dB."""
        return decibels(self.shares(choice, reference))

    def shares(self, choice: Mapping[str, str], reference: Reference) -> Array:
        """Return what each sample adds to the share of error of the float outputs."""
        feed: dict[str, Array] = {}
        for root, method in choice.items():
            affine = self.affine(Span.over([self.table.tensors[name].methods[method] for name in self.group(root)]))
            scale, zero_point = self.parameters[root]
            stored = affine.stored_as(self._types[zero_point])  # a sign may change with the method, an input's type not
            feed[scale] = np.asarray(stored.scale, dtype=np.float32)
            feed[zero_point] = np.asarray(stored.zero_point, dtype=stored.dtype)
        return reference.shares(self._session, feed)

    def _scales_as_inputs(self, graph: onnx.GraphProto) -> None:
        names = {name for pair in self.parameters.values() for name in pair}
        kept = []
        for tensor in graph.initializer:
            if tensor.name in names:
                graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, []))
            else:
                kept.append(tensor)
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _differ(a: float, b: float) -> bool:
    return abs(a - b) > _SAME * max(abs(a), abs(b))
