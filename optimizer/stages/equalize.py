"""Equalize: move scale per channel between activations and weights, so that int8 serves the graph better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizer.errors import StageError
from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Dialect, Format

if TYPE_CHECKING:
    import onnx

    from optimizer.calibration.histogram import RunningHistogram
    from optimizer.calibration.smoothing import Choice
    from optimizer.data.samples import Samples
    from optimizer.graph.affine import Bounds
    from optimizer.graph.quantize import Quantized


class Equalize(Stage):
    """Rewrite the float32 graph into one of the same function whose channels differ less in size.

    Source: SmoothQuant, Xiao et al. 2022, arXiv:2211.10438; cross-layer equalisation, Nagel et al. 2019,
    arXiv:1906.04721, section 4.1.
    """

    name: ClassVar[str] = "equalize"
    version: ClassVar[int] = 3
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx", "samples": "data"}
    produces: ClassVar[Format] = "onnx"
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")
    keeps_float32: ClassVar[bool] = True
    # Each scaled weight and activation is rounded once more, to u = 2^-24 of itself: 149 dB a layer, 125 dB measured
    # behind the 24 of MiniLM; 25 dB below that is room for 300 times as many. Where sums cancel, single elements keep
    # fewer digits.
    tolerance: ClassVar[Tolerance | None] = Tolerance(
        "the same function in float32: weights and activations are scaled against each other and rounded anew",
        atol=1e-6,
        rtol=1e-5,
        min_sqnr_db=100.0,
    )

    smooth_quant: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] | None = Field(
        None,
        description="SmoothQuant: share of activations' outliers that weights take over; auto: measured, "
        "and left out where it gains no more than by chance",
    )
    cross_layer: bool = Field(False, description="equalize the channels between consecutive convolutions")
    method: Literal["minmax", "percentile", "entropy", "mse", "auto"] = Field(
        "percentile", description="how the range of an activation is chosen"
    )
    percentile: float = Field(99.999, gt=50.0, le=100.0, description="percent of values that percentile covers")
    keep: tuple[str, ...] = Field((), description="operator types, nodes or PyTorch modules that stay in float32")
    residuals: Literal["float", "int8"] = Field("float", description="as quantize's")
    attention: bool = Field(False, description="as quantize's")
    dialect: Dialect = Field("tensorrt", json_schema_extra={"derived": True})

    @classmethod
    def wanted(cls, options: Mapping[str, Any]) -> bool:
        """Only where one of its own options is given: a graph is not rewritten unasked."""
        return options.get("smooth_quant") is not None or bool(options.get("cross_layer"))

    @classmethod
    def follows_target(cls, options: Mapping[str, Any]) -> bool:
        """Only an alpha that is to be found is judged in the target's dialect."""
        return options.get("smooth_quant") == "auto"

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the equalized graph and note what was scaled, and at which price.

        Raises: StageError when there is nothing to equalize, and for samples that cannot calibrate.
        """
        import onnx

        from optimizer.graph.files import save_model

        model = onnx.load(sources["graph"].file)
        if self.cross_layer:
            self._cross_layer(model, context)
        if self.smooth_quant is not None:
            self._smooth(model, context)
        path = workdir / self.main_file
        save_model(model, path)
        onnx.checker.check_model(str(path))

    def _cross_layer(self, model: onnx.ModelProto, context: StageContext) -> None:
        from optimizer.graph.equalize_layers import equalize_layers

        found = equalize_layers(model)
        if not found.pairs:
            raise StageError(
                "cross_layer: no two layers with a positively homogeneous path between them and no other reader on it",
                where="equalize",
                hint="Leave cross_layer out: Relu and pooling can be crossed, Clip and Sigmoid cannot.",
            )
        context.note(
            f"cross-layer: {len(found.pairs)} pairs equalized in {found.rounds} rounds, ranges of their channels "
            f"differed by up to {found.before:.3g} times, now {found.after:.3g}"
        )

    def _smooth(self, model: onnx.ModelProto, context: StageContext) -> None:
        from optimizer.calibration.channels import channel_maxima
        from optimizer.graph.equalize_smooth import smooth, smoothed_activations
        from optimizer.graph.files import copy_model

        channels = smoothed_activations(copy_model(model))
        if not channels:
            raise StageError(
                "smooth_quant: the graph has no Gemm or MatMul with a constant weight of its own",
                where="equalize",
                hint="Leave smooth_quant out; convolutional networks are served by cross_layer: true.",
            )
        samples = context.samples("calibration")
        alpha = self._alpha(model, samples, context)
        if alpha is None:
            return
        maxima = channel_maxima(
            copy_model(model), channels, samples, lambda done, total: context.progress("channel maxima", done, total)
        )
        found = smooth(model, maxima, dict.fromkeys(channels, alpha))
        context.note(
            f"smooth_quant {alpha:g}: {len(found.absorbed)} activations scaled in the layers before them, "
            f"{len(found.inserted)} by a Mul each"
        )

    def _alpha(self, model: onnx.ModelProto, samples: Samples, context: StageContext) -> float | None:
        """Return the alpha to use; None where the plain graph is best."""
        if self.smooth_quant != "auto":
            return self.smooth_quant
        from optimizer.calibration.smoothing import choose_alpha

        method, estimate = self._estimator()
        choice = choose_alpha(
            model,
            samples,
            estimate,
            self._quantized,
            lambda done, total: context.progress("alphas tried", done, total),
        )
        context.note(_sentence(choice, method, self.dialect))
        return choice.alpha

    def _estimator(self) -> tuple[str, Callable[[RunningHistogram], Bounds]]:
        """Return the recipe's estimator and its name; where one is to be picked per tensor, the trials take MinMax."""
        from optimizer.calibration.estimators import Method, estimate

        method: Method = "minmax" if self.method == "auto" else self.method
        return method, lambda found: estimate(found, method, self.percentile)

    def _quantized(self, model: onnx.ModelProto, ranges: Mapping[str, Bounds]) -> Quantized:
        from optimizer.graph.quantize import quantize

        return quantize(model, ranges, self.dialect, self.keep, self.residuals, self.attention)


def _sentence(choice: Choice, method: str, dialect: str) -> str:
    order = sorted(choice.trials, key=lambda alpha: -1.0 if alpha is None else alpha)
    numbers = ", ".join(f"{'plain' if a is None else format(a, 'g')} {choice.trials[a]:.1f}" for a in order)
    return (
        f"smooth_quant auto took {_verdict(choice)}: int8 SQNR in dB at the outputs was {numbers} "
        f"({choice.calibrating} samples calibrated, {choice.judging} others judged, {method}, {dialect} dialect)"
    )


def _verdict(choice: Choice) -> str:
    if choice.alpha is not None:
        near = ", ".join(format(alpha, "g") for alpha in choice.near)
        apart = f", too near to call with {near}" if near else ""
        return f"alpha {choice.alpha:g}, against plain {choice.gain} on the same samples{apart}"
    return (
        f"the plain graph, as no alpha is better by more than chance ({choice.best:g} and its neighbours, the best, "
        f"by {choice.gain})"
    )
