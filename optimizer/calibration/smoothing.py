"""Choose how strongly to smooth: quantize with each alpha and measure at the outputs, on samples set aside for it.

Another alpha rounds every weight anew, so that in a small graph the SQNR of neighbours differs by a few dB at random,
and the best of ten is the luckiest. So an alpha must be better than the plain graph on the same samples by more than
chance, its neighbours with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from optimizer.calibration.channels import channel_maxima
from optimizer.calibration.collect import collect
from optimizer.calibration.histogram import RunningHistogram
from optimizer.calibration.paired import FEWEST_SAMPLES, Gain, gains
from optimizer.calibration.probe import Picked, Reference, decibels
from optimizer.data.samples import Array, Samples
from optimizer.errors import StageError
from optimizer.graph.affine import Bounds
from optimizer.graph.equalize_smooth import smooth, smoothed_activations
from optimizer.graph.files import copy_model
from optimizer.graph.quantize import Quantized, activations

GRID = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Then both neighbours of the best one are tried.
_STEP = 0.05
MOST_CALIBRATING, MOST_JUDGING = 128, 128
# A gain below this is not worth a change of the graph, however sure it is.
_LEAST_DB = 0.1
# The median of the square of a normal value, of variance one.
_MEDIAN_OF_SQUARE = 0.4549

Estimator = Callable[[RunningHistogram], Bounds]
Quantizer = Callable[[onnx.ModelProto, Mapping[str, Bounds]], Quantized]  # in the target's dialect; takes the graph
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Judge:
    """What a quantized graph is made with, and judged by."""

    estimate: Estimator
    quantizer: Quantizer
    calibrating: Samples
    reference: Reference

    def shares(self, model: onnx.ModelProto) -> Array:
        """Quantize a float32 graph as its target will have it: its share of error by sample; `model` stays as it is."""
        histograms = collect(model, activations(model), self.calibrating, lambda done, total: None).histograms
        ranges = {name: self.estimate(found) for name, found in histograms.items() if found.total}
        return self.reference.shares_of(self.quantizer(copy_model(model), ranges).model)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was tried, with the SQNR in dB at the outputs by alpha, None being the graph as it is, and what was taken.

    `gain` is that of the alpha over the plain graph, where none was taken of the best of them, as far as its neighbours
    bear it out; `near` are alphas that were not told apart from the one taken.
    """

    alpha: float | None
    trials: Mapping[float | None, float]
    best: float
    gain: Gain
    near: tuple[float, ...]
    calibrating: int
    judging: int


def choose_alpha(
    model: onnx.ModelProto, samples: Samples, estimate: Estimator, quantizer: Quantizer, progress: Progress
) -> Choice:
    """Return the alpha that serves the outputs best, None where the plain graph does; `model` stays as it is.

    Half of the samples calibrate, the others judge, up to 128 and 128 of them: none is evaluation data.
    Raises: StageError for fewer than `FEWEST_SAMPLES`, and as `collect` and `quantize` do.
    """
    calibrating, judging = split(samples)
    channels = smoothed_activations(copy_model(model))
    maxima = channel_maxima(copy_model(model), channels, calibrating, lambda done, total: None)
    total = len(GRID) + 3
    with Reference(model, judging) as reference:
        judge = Judge(estimate, quantizer, calibrating, reference)
        trials: dict[float | None, Array] = {None: judge.shares(model)}

        def attempt(alpha: float) -> None:
            smoothed = copy_model(model)
            smooth(smoothed, maxima, dict.fromkeys(channels, alpha))
            trials[alpha] = judge.shares(smoothed)
            progress(len(trials), total)

        for alpha in GRID:
            attempt(alpha)
        best = max(GRID, key=lambda alpha: decibels(trials[alpha]))
        for alpha in (round(best - _STEP, 2), round(best + _STEP, 2)):
            if alpha <= 1.0:
                attempt(alpha)
    found = pick(trials)
    sqnr_db = {alpha: decibels(shares) for alpha, shares in trials.items()}
    return Choice(found.alpha, sqnr_db, found.best, found.gain, found.near, len(calibrating), len(judging))


@dataclass(frozen=True, slots=True)
class Pick:
    """The alpha to take or None, the best of all, its gain over the plain graph, and those too near to call."""

    alpha: float | None
    best: float
    gain: Gain
    near: tuple[float, ...]


def pick(trials: Mapping[float | None, Array]) -> Pick:
    """Return the alpha to take by the shares of error by sample, with None's for the plain graph.

    Where an alpha and its neighbours are better than the plain graph by more than chance, it is the middle of those
    that are not told apart from the best.
    """
    tried = sorted(alpha for alpha in trials if alpha is not None)
    curve = [trials[alpha] for alpha in tried if alpha in GRID]
    rounded_anew = math.sqrt(2) * _roughness(curve)  # the plain graph, too
    own = gains(trials[None], {alpha: trials[alpha] for alpha in tried}, rounded_anew)
    borne = {alpha: _borne_out(own, tried, position) for position, alpha in enumerate(tried)}
    sure = [alpha for alpha in tried if borne[alpha].low > 0 and borne[alpha].db >= _LEAST_DB]
    best = max(sure or tried, key=lambda alpha: borne[alpha].db)
    if not sure:
        return Pick(None, best, borne[best], ())
    others = gains(trials[best], {alpha: trials[alpha] for alpha in sure if alpha != best})
    plateau = [best]
    for side in (tried[tried.index(best) + 1 :], tried[: tried.index(best)][::-1]):
        for alpha in side:
            if alpha not in others or others[alpha].high < 0:
                break
            plateau.append(alpha)
    plateau.sort()
    middle = (plateau[0] + plateau[-1]) / 2
    alpha = min(plateau, key=lambda a: (round(abs(a - middle), 6), a))  # of two as near the smaller change
    return Pick(alpha, best, borne[alpha], tuple(a for a in plateau if a != alpha))


def _roughness(curve: Sequence[Array]) -> float:
    """Return by how many dB a value deviates at random from its neighbours, beyond what the samples explain.

    What is smooth over alpha is left out: second differences of independent values have six times their variance.
    """
    known = np.array([shares for shares in curve if 0 < shares.sum() < math.inf])
    if len(known) < 3:
        return 0.0
    totals = known.sum(1, keepdims=True)
    bends = np.diff(10 * np.log10(totals[:, 0]), n=2)
    by_samples = (np.diff(10 / math.log(10) * known / totals, n=2, axis=0) ** 2).sum(1)
    excess = float(np.median(bends**2)) / _MEDIAN_OF_SQUARE - float(np.median(by_samples))
    return math.sqrt(max(excess, 0.0) / 6)


def _borne_out(own: Mapping[float, Gain], tried: Sequence[float], position: int) -> Gain:
    """Return an alpha's gain as far as its neighbours have it too: a lone peak has what the better of the two has."""
    around = sorted((own[alpha] for alpha in tried[max(position - 1, 0) : position + 2]), key=lambda gain: gain.db)
    return min(own[tried[position]], around[1] if len(around) > 2 else around[0], key=lambda gain: gain.db)


def split(samples: Samples) -> tuple[Picked, Picked]:
    """Return samples to calibrate with and others to judge by: of two in a row the second judges."""
    count = len(samples)
    if count < FEWEST_SAMPLES:
        raise StageError(
            f"smooth_quant: auto needs at least {FEWEST_SAMPLES} samples, to calibrate and to judge; there are {count}",
            where="calibration data",
            hint=f"Ask for more samples ({MOST_CALIBRATING + MOST_JUDGING} are used), "
            "or give smooth_quant a number between 0 and 1.",
        )
    judging = [i for i in range(count) if i % 2 == 1][:MOST_JUDGING]
    calibrating = [i for i in range(count) if i % 2 == 0][:MOST_CALIBRATING]
    return Picked(samples, calibrating), Picked(samples, judging)
