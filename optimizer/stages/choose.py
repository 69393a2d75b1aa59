"""Choose: calibration methods per tensor, and layers that stay in float, by what they do to the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optimizer.stage import Stage, StageContext
from optimizer.types import Artifact, Dialect, Format

if TYPE_CHECKING:
    import onnx

    from optimizer.calibration.table import CalibrationTable
    from optimizer.graph.quantize import Quantized


class Choose(Stage):
    """Try the table's methods on every tensor, and every layer in float, and keep what serves the outputs best."""

    name: ClassVar[str] = "choose"
    consumes: ClassVar[Mapping[str, Format]] = {"table": "calibration", "graph": "onnx", "samples": "data"}
    produces: ClassVar[Format] = "calibration"
    version: ClassVar[int] = 5
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")

    method: Literal["minmax", "percentile", "entropy", "mse", "auto"] = Field(
        "percentile", description="how the range of an activation is chosen"
    )
    float_share: float = Field(
        0.0,
        ge=0.0,
        le=0.5,
        description="share of the multiply-accumulates that may stay in float, where that gains the outputs most",
    )
    keep: tuple[str, ...] = Field((), description="operator types, nodes or PyTorch modules that stay in float32")
    residuals: Literal["float", "int8"] = Field("float", description="as quantize's")
    attention: bool = Field(False, description="as quantize's")
    dialect: Dialect = Field("tensorrt", json_schema_extra={"derived": True})

    @classmethod
    def wanted(cls, options: Mapping[str, Any]) -> bool:
        """Return whether the recipe leaves methods or layers to be measured."""
        return options.get("method") == "auto" or bool(options.get("float_share"))

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the table with a method per tensor and the layers to spare, and note what was picked.

        Raises: StageError for fewer samples than can judge, or a graph without a float output.
        """
        from dataclasses import replace

        import onnx

        from optimizer.calibration.choose import choose
        from optimizer.calibration.probe import halves
        from optimizer.calibration.spare import spare
        from optimizer.calibration.table import CalibrationTable

        table = CalibrationTable.read(sources["table"].file)
        float32 = onnx.load(sources["graph"].file)
        samples = context.samples("calibration")
        if self.method == "auto":
            chosen = choose(
                self._quantized(float32, table),
                float32,
                table,
                self.dialect,
                halves(samples, "method: auto"),
                lambda done, total: context.progress("tensors", done, total),
            )
            table = table.with_choice(chosen.methods, "auto")
            context.note(chosen.sentence())
        if self.float_share:
            spared = spare(
                float32,
                lambda layers: self._quantized(float32, table, layers),
                self.float_share,
                halves(samples, "float_share"),
                lambda done, total: context.progress("layers", done, total),
            )
            table = replace(table, spared=spared.layers)
            context.note(spared.sentence())
        table.write(workdir / self.main_file)

    def _quantized(self, float32: onnx.ModelProto, table: CalibrationTable, spared: Sequence[str] = ()) -> Quantized:
        from optimizer.graph.files import copy_model
        from optimizer.graph.quantize import quantize

        model = copy_model(float32)
        keep = (*self.keep, *spared)
        return quantize(model, table.tensors, self.dialect, keep, self.residuals, self.attention)
