"""Int4: weights of matrix products in 4 bits with a scale per block; activations stay in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Format


class Int4(Stage):
    """Store the weights of MatMul and Gemm as packed 4-bit integers behind a DequantizeLinear; no data is needed."""

    name: ClassVar[str] = "int4"
    version: ClassVar[int] = 2
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx"}
    produces: ClassVar[Format] = "onnx"
    tools: ClassVar[tuple[str, ...]] = ("onnx", "numpy")
    needs_capability: ClassVar[str | None] = "8.0"  # TensorRT-RTX refuses int4 for Turing
    # A block of 32 normal weights keeps 21 dB, one of 128 keeps 20; errors of n layers in a row add up to 10 log10(n)
    # less: 10 dB after 12. Measured: all-MiniLM-L6-v2 12.2 dB with blocks of 32, 11.0 with 128.
    tolerance: ClassVar[Tolerance | None] = Tolerance(
        reason="4 bits keep 20 dB of a weight and 8 dB and more of a network; below 5 dB a scale or an axis is wrong",
        min_sqnr_db=5.0,
        exact_integers=False,
    )

    keep: tuple[str, ...] = Field(
        (), description="operator types, nodes or PyTorch modules (with all inside them) that stay in float32"
    )
    block: Literal[32, 64, 128] = Field(32, description="how many weights, along the summed axis, share a scale")
    at_least: float = Field(
        0.5, gt=0.0, le=1.0, description="share of multiply-accumulates with 4-bit weights; below it the stage fails"
    )

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the graph with 4-bit weights, and what it delivers layer by layer.

        Raises: StageError when the graph cannot be quantized, when `keep` matches nothing, or when less than
        `at_least` of the multiply-accumulates would read 4-bit weights.
        """
        import onnx

        from optimizer.graph.blocks import quantize_blocks
        from optimizer.graph.delivered import Wish, write_delivered
        from optimizer.graph.files import save_model
        from optimizer.graph.quantize import summarize

        stored = quantize_blocks(onnx.load(sources["graph"].file), self.keep, self.block)
        quantized = stored.quantized
        path = workdir / self.main_file
        save_model(quantized.model, path)
        onnx.checker.check_model(str(path))
        receipt = write_delivered(path, quantized, Wish(self.name, "int4", self.at_least, self.keep))
        context.note(
            f"{receipt.shares['int4']:.1%} of the multiply-accumulates read int4 weights in blocks of {self.block}: "
            f"{stored.stored_bytes / 1e6:.2f} MB with their scales instead of {stored.float_bytes / 1e6:.2f} MB"
        )
        for sentence in (*receipt.notes, *quantized.notes, *(f"in float32: {s}" for s in summarize(quantized.left))):
            context.note(sentence)
