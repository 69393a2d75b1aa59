"""Calibrate: find the range of every activation on real samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optimizer.errors import StageError
from optimizer.stage import Stage, StageContext
from optimizer.types import Artifact, Dialect, Format

if TYPE_CHECKING:
    from optimizer.calibration.collect import Collected, Snapshots
    from optimizer.calibration.estimators import Method
    from optimizer.calibration.histogram import RunningHistogram
    from optimizer.calibration.table import CalibrationTable, MethodRange


class Calibrate(Stage):
    """Run the float32 graph over the samples once, in bounded memory, and write one table for all dialects."""

    name: ClassVar[str] = "calibrate"
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx", "samples": "data"}
    produces: ClassVar[Format] = "calibration"
    version: ClassVar[int] = 7
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")
    depends: ClassVar[Mapping[str, tuple[str, object]]] = {"percentile": ("method", ("percentile", "auto"))}

    method: Literal["minmax", "percentile", "entropy", "mse", "auto"] = Field(
        "percentile", description="how the range of an activation is chosen"
    )
    percentile: float = Field(
        99.999, gt=50.0, le=100.0, description="percent of values that percentile covers; the rest is clipped"
    )
    synthetic: bool = Field(False, json_schema_extra={"derived": True})  # the recipe says that its data is random
    # Those of the targets that the variant is built for.
    dialects: tuple[Dialect, ...] = Field(("cpu", "openvino", "tensorrt"), json_schema_extra={"derived": True})
    # Whether the variant adds residuals in int8: their branches are read for that alone.
    integer_sums: bool = Field(True, json_schema_extra={"derived": True})

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the calibration table: what every method finds in one pass, and the chosen one's name.

        Raises: StageError for a graph that cannot be quantized, and for samples that are too few, all alike, NaN, or
        random numbers.
        """
        from optimizer.calibration.collect import Watch, collect, refuse_noise
        from optimizer.calibration.doctor import findings
        from optimizer.calibration.reading import tensors_to_calibrate
        from optimizer.graph.files import load_without_weights
        from optimizer.graph.modules import module_of

        model = load_without_weights(sources["graph"].file)
        modules = {tensor: module_of(node) for node in model.graph.node for tensor in node.output}
        # What is to be picked per tensor starts from one method for all.
        base: Method = "percentile" if self.method == "auto" else self.method
        earlier = _Earlier(base, self.percentile)
        found = collect(
            model,
            tensors_to_calibrate(model, self.dialects, integer_sums=self.integer_sums),
            context.samples("calibration"),
            lambda done, total: context.progress("calibration samples", done, total),
            Watch(earlier.take),
        )
        if not self.synthetic:
            refuse_noise(found)
        table = self._table(found, earlier, modules)
        table.write(workdir / self.main_file)
        context.note(f"{len(table.tensors)} activations over {found.samples} samples, {self.method}")
        if found.repeated:
            context.note(f"the graph's batch is fixed: {found.repeated} samples were run again to fill the last batch")
        for sentence in findings(table):
            context.note(sentence)

    def _table(self, found: Collected, earlier: _Earlier, modules: Mapping[str, str]) -> CalibrationTable:
        from optimizer.calibration.table import CalibrationTable, TensorRange

        tensors = {}
        # What no sample reaches has no range; quantize names it should it need it.
        seen = {name: histogram for name, histogram in found.histograms.items() if histogram.total}
        different = {histogram: name for name, histogram in seen.items()}  # some tensors share one
        # One after another: threads would wait for the interpreter's lock as long as they compute.
        each = {histogram: self._methods(name, histogram, earlier) for histogram, name in different.items()}
        for name, histogram in seen.items():
            methods = each[histogram]
            seen_range = (histogram.minimum, histogram.maximum, histogram.total)
            tensors[name] = TensorRange(*seen_range, earlier.method, methods, modules.get(name, ""))
        return CalibrationTable(self.method, self.percentile, found.samples, tensors, tuple(earlier.found))

    def _methods(self, name: str, histogram: RunningHistogram, earlier: _Earlier) -> dict[str, MethodRange]:
        from optimizer.calibration.doctor import examine
        from optimizer.calibration.estimators import estimates

        try:
            found = estimates(histogram, self.percentile)
        except (ArithmeticError, ValueError, IndexError) as error:
            span = f"{histogram.total} values between {histogram.minimum:g} and {histogram.maximum:g}"
            raise StageError(
                f"no range is found for activation '{name}' ({span}): {error}",
                where="calibrate",
                hint="Please report the model. The activation's values may be at the limits of float32.",
            ) from error
        return {
            method: examine(histogram, estimate, earlier.magnitudes(histogram) if method == earlier.method else ())
            for method, estimate in found.items()
        }


class _Earlier:
    """What the chosen method would have said before all samples were seen: a number per tensor and checkpoint."""

    def __init__(self, method: Method, percentile: float) -> None:
        self.method: Method = method
        self.percentile = percentile
        self.found: dict[int, dict[RunningHistogram, float]] = {}

    def take(self, samples: int, snapshots: Snapshots) -> None:
        """Estimate from what was seen so far."""
        from optimizer.calibration.estimators import magnitude

        def found(histogram: RunningHistogram) -> float:
            return magnitude(histogram, self.method, self.percentile) if histogram.total else 0.0

        self.found[samples] = {histogram: found(then) for histogram, then in snapshots.items()}

    def magnitudes(self, histogram: RunningHistogram) -> tuple[float, ...]:
        """Return what it would have said at each checkpoint."""
        return tuple(found[histogram] for found in self.found.values())
