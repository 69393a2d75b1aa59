"""Convert a float32 graph to mixed bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from optimizer.runtime.session import Session
from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Format


class BFloat16(Stage):
    """Cast what bfloat16 serves to bfloat16, float32's range with 8 bits; what needs more digits stays float32."""

    name: ClassVar[str] = "bfloat16"
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx", "samples": "data"}
    optional: ClassVar[frozenset[str]] = frozenset({"samples"})
    produces: ClassVar[Format] = "onnx"
    version: ClassVar[int] = 3
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")
    # One rounding to bfloat16 (u = 2^-8) leaves 20 log10(sqrt(3) / u) = 53 dB; n independent ones of equal weight leave
    # 53 - 10 log10(n), and a network of some 60 operators 35. Measured: ResNet-20 40 dB.
    tolerance: ClassVar[Tolerance | None] = Tolerance(
        reason="bfloat16 carries 8 bits: sound graphs keep 25 to 45 dB, below 15 dB digits that matter were lost",
        min_sqnr_db=15.0,
        exact_integers=False,
    )

    keep: tuple[str, ...] = Field(
        (), strict=False, description="operator types, node names or PyTorch modules that stay float32"
    )

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the strongly typed graph with its receipt by layer, and note which nodes stayed float32.

        Raises: StageError when the graph is already typed, when its opset has no bfloat16 convolutions, when `keep`
        names what it does not hold, when nothing became bfloat16, and for samples that are too few or NaN.
        """
        from optimizer.calibration.ranges import measure_if_given
        from optimizer.graph.bfloat16 import convert_to_bfloat16
        from optimizer.graph.delivered import write_rows
        from optimizer.graph.receipt import graph_receipt

        graph, path = sources["graph"].file, workdir / self.main_file
        measured = measure_if_given(sources, context, "digits were", self.name)
        report = convert_to_bfloat16(graph, path, self.keep, measured)
        write_rows(path, graph_receipt(path), "bf16", report.kept, report.listed)
        for sentence in report.sentences():
            context.note(sentence)

    def open_output(self, output: Artifact) -> Session | str:
        """Open the output with bfloat16 rounding emulated: the CPU has no kernels for most of it."""
        from optimizer.judge import open_judge

        return open_judge(output.file)[0]
