"""Float8: E4M3 weights and Q/DQ pairs, for engines of compute capability 8.9 and later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Format


class Float8(Stage):
    """Write the graph with FP8 pairs at the inputs of Conv, Gemm and MatMul, from the ranges of a calibration table."""

    name: ClassVar[str] = "float8"
    version: ClassVar[int] = 2
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx", "table": "calibration"}
    produces: ClassVar[Format] = "onnx"
    tools: ClassVar[tuple[str, ...]] = ("onnx", "numpy")
    needs_capability: ClassVar[str | None] = "8.9"  # Ada is the first with FP8 tensor cores
    # Steps are uniform within an octave: mean square (1.5 / ln 2) / (2^-6 / 12) = 32 dB of a tensor, 29 dB of a product
    # of two, and 10 log10(n) less for n layers in a row: 16 dB after 20. Measured: 17.4 dB for ResNet-20, 18.3 for 56.
    tolerance: ClassVar[Tolerance | None] = Tolerance(
        reason="E4M3 has 4 significant bits: 29 dB of one product, 17 dB after 20 to 56 layers; below 8 dB a scale or "
        "an axis is wrong",
        min_sqnr_db=8.0,
        exact_integers=False,
    )

    keep: tuple[str, ...] = Field(
        (), description="operator types, nodes or PyTorch modules (with all inside them) that stay in float32"
    )
    attention: bool = Field(False, description="whether attention's two products of activations are fp8 as well")
    at_least: float = Field(
        0.5, gt=0.0, le=1.0, description="share of multiply-accumulates that must be fp8; below it the stage fails"
    )

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the quantized graph, and what it delivers layer by layer.

        Raises: StageError when the graph cannot be quantized, when `keep` matches nothing, or when less than
        `at_least` of the multiply-accumulates would be fp8.
        """
        import onnx

        from optimizer.calibration.table import CalibrationTable
        from optimizer.graph.delivered import Wish, write_delivered
        from optimizer.graph.files import save_model
        from optimizer.graph.float8 import quantize_float8
        from optimizer.graph.quantize import summarize

        table = CalibrationTable.read(sources["table"].file)
        quantized = quantize_float8(onnx.load(sources["graph"].file), table.tensors, self.keep, self.attention)
        path = workdir / self.main_file
        save_model(quantized.model, path)
        onnx.checker.check_model(str(path))
        receipt = write_delivered(path, quantized, Wish(self.name, "fp8", self.at_least, self.keep))
        context.note(f"{receipt.shares['fp8']:.1%} of the multiply-accumulates are fp8 (E4M3)")
        for sentence in (*receipt.notes, *quantized.notes, *(f"in float32: {s}" for s in summarize(quantized.left))):
            context.note(sentence)
