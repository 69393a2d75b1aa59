"""The outputs of two bundles on the golden inputs of both: few, but real and computed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from optimizer.compare.result import Check, Finding
from optimizer.compare.shipped import Bundle, same_inputs
from optimizer.errors import OptimizerError
from optimizer.measure.numerics import NumericsAccumulator
from optimizer.runtime.bundle import Deployment
from optimizer.runtime.golden import batch_sizes, replay
from optimizer.runtime.session import Array, Feed

if TYPE_CHECKING:
    from optimizer.recipe.model import Gate


@dataclass(slots=True)
class _Seen:
    """What was seen of one output over all golden inputs."""

    numerics: NumericsAccumulator = field(default_factory=NumericsAccumulator)
    is_float: bool = True
    broken: int = 0  # not finite where the baseline's value is
    values: int = 0
    equal: int = 0
    samples: int = 0
    same_answers: int | None = None  # of samples; None where the output is no classification

    def add(self, before: Array, after: Array, is_classes: bool) -> None:
        """Fold in the outputs on one set of inputs."""
        self.numerics.add(before, after)
        self.is_float = before.dtype.kind in "fc"
        self.broken += int((np.isfinite(before) & ~np.isfinite(after)).sum())
        self.values += before.size
        self.equal += int((before == after).sum())
        self.samples += len(before)
        if is_classes:
            same = int((before.argmax(axis=1) == after.argmax(axis=1)).sum())
            self.same_answers = (self.same_answers or 0) + same


def compare_outputs(
    before: Bundle, after: Bundle, opened: tuple[Deployment, Deployment], gate: Gate | None
) -> tuple[list[Check], list[Bundle]]:
    """Compare every output on every golden input: shown, because no tolerance is known between two models.

    What is judged: an output that is not finite where the baseline's is, in any case; without a gate also one that came
    out in another shape, and inputs of the baseline that the candidate refuses.
    Returns the checks, and the bundles whose golden inputs ran in both.
    """
    shared = same_inputs(before, after)
    seen: dict[str, _Seen] = {}
    refused, unlike, ran = [], {}, []
    for source in [before] if shared else [before, after]:
        sides = []
        for bundle, deployment in zip((before, after), opened, strict=True):
            try:
                sides.append(_replayed(bundle, deployment, source.golden_inputs))
            except OptimizerError as error:
                refused.append(_refusal(after, bundle, source, error, gate))
        if len(sides) < 2:
            continue
        ran.append(source)
        old, new = sides
        for name, array in old.items():
            if array.shape != new[name].shape:
                unlike[name] = _unlike(after.name, name, (array, new[name]), gate)
            else:
                seen.setdefault(name, _Seen()).add(array, new[name], _is_classes(before, opened[0], array))
    of = _of(ran, shared)
    return [
        *refused,
        *unlike.values(),
        *(_check(after.name, name, found, of) for name, found in seen.items() if name not in unlike or found.broken),
    ], ran


def _of(ran: Sequence[Bundle], shared: bool) -> str:
    if shared:
        return "which both bundles have"
    return "those of both bundles" if len(ran) > 1 else "".join(f"those of the {bundle.side}" for bundle in ran)


def _refusal(after: Bundle, refusing: Bundle, source: Bundle, error: OptimizerError, gate: Gate | None) -> Check:
    """What the baseline refuses, nobody loses."""
    finding: Finding = "inconclusive" if refusing is after and gate is None else "shown"
    sentence = f"the golden inputs of the {source.side} do not run in the {refusing.side}: {error.what}"
    return Check(after.name, "outputs", finding, "-", "-", sentence)


def _unlike(candidate: str, name: str, before_after: tuple[Array, Array], gate: Gate | None) -> Check:
    old, new = (str(list(array.shape)) for array in before_after)
    sentence = f"output '{name}' came out as {new}, was {old} on the same golden inputs"
    return Check(candidate, f"output '{name}'", "shown" if gate else "fail", old, new, sentence)


def _replayed(bundle: Bundle, deployment: Deployment, inputs: Feed) -> dict[str, Array]:
    return replay(deployment.session, inputs, batch_sizes(bundle.inputs, bundle.passport["profile"]))


def _is_classes(bundle: Bundle, deployment: Deployment, array: Array) -> bool:
    """Whether each row is a score for each class: labels say so, or a metric that counts right answers."""
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind != "f":
        return False
    labelled = deployment.labels is not None and array.shape[1] == len(deployment.labels)
    return labelled or (
        len(bundle.outputs) == 1 and any(name.startswith("top") for name in bundle.passport["accuracy"])
    )


def _check(candidate: str, name: str, found: _Seen, of: str) -> Check:
    max_abs, cosine, sqnr_db = found.numerics.figures()
    inputs = f"{found.samples} golden inputs, {of}"
    subject = f"output '{name}'"
    if found.broken:
        said = f"{found.broken:,} of {found.values:,} values are NaN or infinite where the baseline's are finite"
        return Check(candidate, subject, "fail", "finite", "not finite", f"{said}, on {inputs}")
    share = f"{found.equal / max(1, found.values):.1%} of the values equal"
    after = f"{sqnr_db:.1f} dB" if sqnr_db is not None else "-"
    if found.equal == found.values:
        parts, after = ["every value is the same"], "equal"
    elif not found.is_float:
        parts, after = [share], share.split(maxsplit=1)[0]
    elif sqnr_db is not None:
        parts = [f"SQNR {sqnr_db:.1f} dB against the baseline, largest difference {max_abs:.3g}"]
        parts += [f"cosine {cosine:.6f}"] if cosine is not None else []
    else:
        parts = ["no SQNR is defined"]
    if found.same_answers is not None:
        parts.append(f"the same answer on {found.same_answers} of {found.samples}")
    return Check(candidate, subject, "shown", "-", after, f"{', '.join(parts)}; on {inputs}: few, so it is shown")
