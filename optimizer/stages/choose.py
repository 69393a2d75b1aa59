"""Choose: the calibration method of each tensor by what it does to the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from optimizer.stage import Stage, StageContext
from optimizer.types import Artifact, Format


class Choose(Stage):
    """Try every method of the table on every tensor of the quantized graph, and keep what serves its outputs best."""

    name: ClassVar[str] = "choose"
    consumes: ClassVar[Mapping[str, Format]] = {"table": "calibration", "graph": "onnx", "samples": "data"}
    produces: ClassVar[Format] = "calibration"
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")

    keep: tuple[str, ...] = Field((), description="operator types, nodes or PyTorch modules that stay in float32")
    residuals: Literal["float", "int8"] = Field("float", description="as quantize's")
    attention: bool = Field(False, description="as quantize's")
    dialect: Literal["tensorrt", "cpu"] = Field("tensorrt", json_schema_extra={"derived": True})

    @classmethod
    def wanted(cls, options: Mapping[str, Any]) -> bool:
        """Return whether the recipe leaves the method to be measured."""
        return options.get("method") == "auto"

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the table with a method per tensor, and note what was picked.

        Raises: StageError for fewer than two samples, or a graph without a float output.
        """
        import onnx

        from optimizer.calibration.choose import choose
        from optimizer.calibration.table import CalibrationTable
        from optimizer.graph.quantize import quantize

        table = CalibrationTable.read(sources["table"].file)
        float32 = onnx.load(sources["graph"].file)
        quantized = quantize(
            onnx.load(sources["graph"].file),
            table.tensors,
            self.dialect,
            self.keep,
            residuals=self.residuals,
            attention=self.attention,
        )
        chosen = choose(
            quantized,
            float32,
            table,
            self.dialect,
            context.samples("calibration"),
            lambda done, total: context.progress("tensors", done, total),
        )
        table.with_choice(chosen.methods, "auto").write(workdir / self.main_file)
        context.note(chosen.sentence())
