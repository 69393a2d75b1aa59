"""Simplify the graph: fold constants, fuse BatchNormalization into Conv, drop what does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from optimizer.isolated import run_isolated
from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Format


class Simplify(Stage):
    """onnxslim in a child process; inputs, outputs and opset stay, and every node gets a name of its own."""

    name: ClassVar[str] = "simplify"
    version: ClassVar[int] = 3
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx"}
    produces: ClassVar[Format] = "onnx"
    preloads: ClassVar[tuple[str, ...]] = ("optimizer.graph.slim", "onnxslim")
    # onnxslim folds constants by running them in onnxruntime.
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxslim", "onnxruntime")
    tolerance: ClassVar[Tolerance | None] = Tolerance(
        "float32 in another order: a BatchNormalization folded into its Conv rounds its weights anew",
        atol=1e-6,
        rtol=1e-5,
        # Where sums cancel, single elements keep fewer digits; over the output float32 keeps more than this.
        min_sqnr_db=90.0,
    )

    usual: dict[str, int] = Field(
        default_factory=dict,
        description="axis -> the size at which its work is counted: the profile's opt",
        json_schema_extra={"derived": True},
    )

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write the simplified graph.

        Raises: StageError when the simplifier crashes, or changes the interface or the opset.
        """
        graph = sources["graph"]
        result = run_isolated(
            "optimizer.graph.slim:slim",
            {"source": str(graph.file), "destination": str(workdir / self.main_file), "usual": self.usual},
            log=context.log,
            what=f"stage '{self.name}' failed on {graph.file.name} ({graph.digest[:8]})",
        )
        counts = result.value
        fewer = ", ".join(f"{op} -{count}" for op, count in sorted(counts["fewer"].items()))
        context.note(f"{counts['before']} -> {counts['after']} nodes" + (f" ({fewer})" if fewer else ""))
