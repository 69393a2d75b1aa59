"""Refine: learn rounding, biases and scales of a quantized graph on its calibration samples."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Dialect, Format

if TYPE_CHECKING:
    from optimizer.calibration.learn import Refined
    from optimizer.runtime.session import Session


class Refine(Stage):
    """Bring the outputs of a quantized graph closer to float32's without touching its structure."""

    name: ClassVar[str] = "refine"
    version: ClassVar[int] = 6
    consumes: ClassVar[Mapping[str, Format]] = {"float32": "onnx", "graph": "onnx", "samples": "data"}
    produces: ClassVar[Format] = "onnx"
    tools: ClassVar[tuple[str, ...]] = ("onnx", "torch", "numpy")
    depends: ClassVar[Mapping[str, tuple[str, object]]] = {"passes": ("rounding", "learned")}
    tolerance: ClassVar[Tolerance | None] = Tolerance(
        "what was learned must not be worse than plain rounding, whose limit this is",
        min_sqnr_db=10.0,
        exact_integers=False,
    )

    rounding: Literal["nearest", "learned"] = Field(
        "nearest", description="learned: weights, biases and scales are trained on the calibration samples"
    )
    bias_correction: bool = Field(False, description="take the mean of each layer's error out of its bias")
    passes: int = Field(16, ge=1, description="passes over the calibration samples that learning makes")
    dialect: Dialect = Field("tensorrt", json_schema_extra={"derived": True})

    @classmethod
    def wanted(cls, options: Mapping[str, Any]) -> bool:
        """Return whether anything is to be learned or corrected."""
        return options.get("rounding") == "learned" or bool(options.get("bias_correction"))

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the refined graph, and note what it gained on samples that were held out: nothing, and it is the same.

        Raises: StageError for an operator without a known gradient, or too few samples.
        """
        import onnx

        from optimizer.calibration.learn import Learning, refine
        from optimizer.graph.files import save_model
        from optimizer.graph.layers import FILE

        quantized, float32 = (onnx.load(sources[role].file) for role in ("graph", "float32"))
        with self.open_parent(sources) as reference:
            refined = refine(
                quantized,
                float32,
                context.samples("calibration"),
                reference=reference,
                how=Learning(self.passes if self.rounding == "learned" else 0, self.bias_correction),
                progress=lambda done, total: context.progress("passes", done, total),
            )
        path = workdir / self.main_file
        save_model(quantized, path)
        onnx.checker.check_model(str(path))
        if (receipt := sources["graph"].path / FILE).is_file():  # values changed, no layer's precision did
            shutil.copyfile(receipt, workdir / FILE)
        what = [f"{self.passes} passes over {refined.learned_on} samples"] if self.rounding == "learned" else []
        what += ["bias correction"] if self.bias_correction else []
        context.note(f"{' and '.join(what)}: {_verdict(refined)}")

    def open_output(self, output: Artifact) -> Session | str:
        """Open the graph as its target executes it, as quantize does."""
        from optimizer.runtime.onnx import OnnxSession

        return OnnxSession(output.file, optimize=self.dialect == "cpu")


def _verdict(refined: Refined) -> str:
    said = (
        f"SQNR of the outputs {refined.before_db:.1f} -> {refined.after_db:.1f} dB on {refined.held_out} held-out "
        f"calibration samples, against plain rounding {refined.gain} on the same samples"
    )
    return said if refined.kept else f"{said}: not better by more than chance, so nothing was changed"
