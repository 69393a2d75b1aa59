"""Choose how strongly to smooth: quantize with each alpha and measure at the outputs, on samples set aside for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from optimizer.calibration.channels import channel_maxima
from optimizer.calibration.collect import collect
from optimizer.calibration.histogram import RunningHistogram
from optimizer.calibration.probe import Picked, Reference
from optimizer.data.samples import Samples
from optimizer.errors import StageError
from optimizer.graph.affine import Bounds
from optimizer.graph.equalize_smooth import smooth, smoothed_activations
from optimizer.graph.files import copy_model
from optimizer.graph.quantize import Quantized, activations

GRID = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Then both neighbours of the best one are tried.
_STEP = 0.05
MOST_CALIBRATING, MOST_JUDGING = 64, 32
# A gain below this is noise of the few samples that judge: the smaller change to the graph wins.
_NOISE_DB = 0.1

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

    def sqnr_db(self, model: onnx.ModelProto) -> float:
        """Quantize a float32 graph as its target will have it and measure its outputs; `model` stays as it is."""
        probe = copy_model(model)
        histograms = collect(probe, activations(probe), self.calibrating, lambda done, total: None).histograms
        ranges = {name: self.estimate(found) for name, found in histograms.items() if found.total}
        return self.reference.sqnr_db_of(self.quantizer(copy_model(model), ranges).model)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was tried: the SQNR in dB at the outputs by alpha, None being the graph as it is, and the best of them."""

    alpha: float | None
    trials: Mapping[float | None, float]
    calibrating: int
    judging: int


def choose_alpha(
    model: onnx.ModelProto, samples: Samples, estimate: Estimator, quantizer: Quantizer, progress: Progress
) -> Choice:
    """Return the alpha with the best SQNR at the outputs; `model` stays as it is.

    Two thirds of the samples calibrate, the others judge, up to 64 and 32 of them: none is evaluation data.
    Raises: StageError for fewer than three samples, and as `collect` and `quantize` do.
    """
    calibrating, judging = split(samples)
    channels = smoothed_activations(copy_model(model))
    maxima = channel_maxima(copy_model(model), channels, calibrating, lambda done, total: None)
    total = len(GRID) + 3
    with Reference(model, judging) as reference:
        judge = Judge(estimate, quantizer, calibrating, reference)
        trials: dict[float | None, float] = {None: judge.sqnr_db(model)}

        def attempt(alpha: float) -> None:
            smoothed = copy_model(model)
            smooth(smoothed, maxima, dict.fromkeys(channels, alpha))
            trials[alpha] = judge.sqnr_db(smoothed)
            progress(len(trials), total)

        for alpha in GRID:
            attempt(alpha)
        best = max(GRID, key=lambda alpha: trials[alpha])
        for alpha in (round(best - _STEP, 2), round(best + _STEP, 2)):
            if alpha <= 1.0:
                attempt(alpha)
    tried = [alpha for alpha in trials if alpha is not None]
    best = max(tried, key=lambda alpha: trials[alpha])
    picked = best if trials[best] > trials[None] + _NOISE_DB else None
    return Choice(picked, trials, len(calibrating), len(judging))


def split(samples: Samples) -> tuple[Picked, Picked]:
    """Return samples to calibrate with and others to judge by: of three in a row the third judges."""
    count = len(samples)
    if count < 3:
        raise StageError(
            f"smooth_quant: auto needs at least 3 samples, to calibrate and to judge; there are {count}",
            where="calibration data",
            hint="Ask for more samples (96 are used), or give smooth_quant a number between 0 and 1.",
        )
    judging = [i for i in range(count) if i % 3 == 2][:MOST_JUDGING]
    calibrating = [i for i in range(count) if i % 3 != 2][:MOST_CALIBRATING]
    return Picked(samples, calibrating), Picked(samples, judging)
