"""Calibrate: find the range of every activation on real samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from optimizer.stage import Stage, StageContext
from optimizer.types import Artifact, Format


class Calibrate(Stage):
    """Run the float32 graph over the samples once, in bounded memory, and write one table for both dialects."""

    name: ClassVar[str] = "calibrate"
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx", "samples": "data"}
    produces: ClassVar[Format] = "calibration"
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")
    depends: ClassVar[Mapping[str, tuple[str, object]]] = {"percentile": ("method", "percentile")}

    method: Literal["minmax", "percentile"] = Field(
        "percentile", description="how the range of an activation is chosen"
    )
    percentile: float = Field(
        99.999, gt=50.0, le=100.0, description="percent of values that percentile covers; the rest is clipped"
    )

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the calibration table.

        Raises: StageError for a graph that cannot be quantized, and for samples that are too few, all alike, or NaN.
        """
        import onnx

        from optimizer.calibration import estimators
        from optimizer.calibration.collect import collect
        from optimizer.calibration.table import CalibrationTable, TensorRange
        from optimizer.graph.quantize import activations

        model = onnx.load(sources["graph"].file)
        tensors = activations(model)
        found = collect(
            model,
            tensors,
            context.samples("calibration"),
            lambda done, total: context.progress("calibration samples", done, total),
        )
        ranges = {}
        for name, histogram in found.histograms.items():
            if histogram.total == 0:
                continue  # no sample reaches it; quantize names it should it need it
            estimate = (
                estimators.minmax(histogram)
                if self.method == "minmax"
                else estimators.percentile(histogram, self.percentile)
            )
            ranges[name] = TensorRange(
                min=histogram.minimum, max=histogram.maximum, values=histogram.total, **asdict(estimate)
            )
        percentile = self.percentile if self.method == "percentile" else None
        CalibrationTable(self.method, percentile, found.samples, ranges).write(workdir / self.main_file)
        context.note(f"{len(ranges)} activations over {found.samples} samples, {self.method}")
        if found.repeated:
            context.note(f"the graph's batch is fixed: {found.repeated} samples were run again to fill the last batch")
