"""Quantize: int8 weights and Q/DQ pairs, in the dialect of the target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optimizer.errors import StageError
from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Dialect, Format

if TYPE_CHECKING:
    from optimizer.graph.quantize import Quantized
    from optimizer.graph.receipt import Receipt
    from optimizer.runtime.session import Session


SPARED = "within float_share, the outputs gain most from it in float"


class Quantize(Stage):
    """Write the graph with Q/DQ pairs and refuse to deliver less int8 than was asked for."""

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 4
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx", "table": "calibration"}
    produces: ClassVar[Format] = "onnx"
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")
    tolerance: ClassVar[Tolerance | None] = Tolerance(
        "int8 with scales per channel leaves 24 to 40 dB on convolutional networks and 14 dB on a transformer with "
        "outliers; below 10 dB a scale, an axis or a zero point is wrong, or the ranges clip most of what is computed",
        min_sqnr_db=10.0,
        exact_integers=False,
    )

    keep: tuple[str, ...] = Field(
        (), description="operator types, nodes or PyTorch modules (with all inside them) that stay in float32"
    )
    residuals: Literal["float", "int8"] = Field(
        "float", description="whether what bypasses a convolution is added to its result in float or as integers"
    )
    attention: bool = Field(False, description="whether attention's two products of activations are int8 as well")
    at_least: float = Field(
        0.5, gt=0.0, le=1.0, description="share of multiply-accumulates that must be int8; below it the stage fails"
    )
    dialect: Dialect = Field("tensorrt", json_schema_extra={"derived": True})

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the quantized graph.

        Raises: StageError when the graph cannot be quantized, when `keep` matches nothing, or when less than
        `at_least` of the multiply-accumulates would be int8.
        """
        from dataclasses import replace

        import onnx

        from optimizer.calibration.table import CalibrationTable
        from optimizer.graph.files import save_model
        from optimizer.graph.layer_receipt import document, layer_rows
        from optimizer.graph.layers import FILE
        from optimizer.graph.quantize import quantize, summarize

        table = CalibrationTable.read(sources["table"].file)
        keep = (*self.keep, *table.spared)
        quantized = quantize(
            onnx.load(sources["graph"].file), table.tensors, self.dialect, keep, self.residuals, self.attention
        )
        quantized = replace(quantized, left={**quantized.left, **dict.fromkeys(table.spared, SPARED)})
        path = workdir / self.main_file
        save_model(quantized.model, path)
        onnx.checker.check_model(str(path))
        receipt = self._check_delivered(path, quantized)
        rows = layer_rows(path, receipt, "int8", quantized.left, quantized.kept)
        text = json.dumps(document(rows, receipt, self.dialect), indent=1, ensure_ascii=False)
        (workdir / FILE).write_text(f"{text}\n", encoding="utf-8")
        share = receipt.shares["int8"]
        context.note(f"{share:.1%} of the multiply-accumulates are int8 ({self.dialect} dialect)")
        for sentence in (*receipt.notes, *quantized.notes, *(f"in float32: {s}" for s in summarize(quantized.left))):
            context.note(sentence)

    def open_output(self, output: Artifact) -> Session | str:
        """Open the graph as its target executes it: the CPU dialect with onnxruntime's integer kernels.

        The others are run as written, because what onnxruntime would fuse there is not what their targets do.
        """
        from optimizer.runtime.onnx import OnnxSession

        return OnnxSession(output.file, optimize=self.dialect == "cpu")

    def _check_delivered(self, path: Path, quantized: Quantized) -> Receipt:
        """Return the receipt as onnxruntime executes the graph, of the other dialects as it is written.

        What their targets make of it is read from the engine, or from the model that OpenVINO compiled. What cannot be
        counted is not int8.
        Raises: StageError for too little int8.
        """
        from optimizer.graph.delivered import Wish, advice
        from optimizer.graph.quantize import summarize
        from optimizer.graph.receipt import graph_receipt, onnxruntime_receipt

        receipt = onnxruntime_receipt(path) if self.dialect == "cpu" else graph_receipt(path)
        taken = [name for name in quantized.left if receipt.precisions.get(name) == "int8"]
        if taken:
            raise StageError(
                f"onnxruntime runs {', '.join(taken[:5])} in int8 by itself, although it shall stay in float",
                where="quantize",
                hint="Take it out of keep:, or keep the layers before and behind it as well.",
            )
        share = receipt.shares.get("int8", 0.0)
        if share > 0.0 and share >= self.at_least:
            return receipt
        reasons = [*summarize(quantized.left), *receipt.notes]
        reasons = reasons or ["onnxruntime has no integer kernel for the layers as they stand"]
        raise StageError(
            f"int8 reaches {share:.1%} of the multiply-accumulates, at_least asks for {self.at_least:.1%}; "
            f"in float stay {'; '.join(reasons[:6])}",
            where="quantize",
            hint=advice(share, Wish(self.name, "int8", self.at_least, self.keep)),
        )
