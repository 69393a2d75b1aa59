"""Build an engine: TensorRT on the GPU that will execute it, TensorRT-RTX ahead of time for listed GPUs."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizer.errors import OptimizerError, StageError
from optimizer.isolated import run_isolated
from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Format

if TYPE_CHECKING:
    from optimizer.graph.receipt import Receipt
    from optimizer.runtime.session import Session

RECEIPT = "engine.json"  # beside the plan: what is known of it without a GPU

Capability = Annotated[str, Field(pattern=r"^\d+\.\d$")]


class Engine(Stage, ABC):
    """What both packages share; precision stands in the graph, and the network is strongly typed."""

    name: ClassVar[str] = "engine"
    version: ClassVar[int] = 4
    consumes: ClassVar[Mapping[str, Format]] = {"graph": "onnx"}
    produces: ClassVar[Format] = "engine"
    tolerance: ClassVar[Tolerance | None] = Tolerance(
        "TF32 and FP16 tensor cores sum in another order, and INT8 values on a rounding edge fall to the other side; "
        "a wrong kernel loses far more",
        min_sqnr_db=25.0,
        exact_integers=False,
    )

    package: Literal["tensorrt", "tensorrt_rtx"] = Field(json_schema_extra={"derived": True})
    profile: dict[str, tuple[int, int, int]] = Field(
        default_factory=dict, description="axis -> min, opt, max", json_schema_extra={"derived": True}
    )

    precision: str = Field("fp32", description="the variant's", json_schema_extra={"derived": True})
    at_least: float = Field(0.0, description="the variant's", json_schema_extra={"derived": True})

    @property
    @abstractmethod
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities asked for; none where the GPU present decides, or the default is wanted."""

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write engine.plan and engine.json.

        Raises: StageError naming every axis without a profile, every node that the parser refuses, or why nothing was
        built; MissingToolError without the package, or without the GPU that `tensorrt` builds on.
        """
        graph = sources["graph"]
        where = f"stage '{self.name}' failed on {graph.file.name} ({graph.digest[:8]})"
        arguments = {
            "source": str(graph.file),
            "plan": str(workdir / self.main_file),
            "package": self.package,
            "profile": {axis: list(sizes) for axis, sizes in self.profile.items()},
            "compute_capabilities": list(self.capabilities),
        }
        try:
            built = run_isolated("optimizer.graph.build_engine:build", arguments, log=context.log, what=where)
        except OptimizerError as error:
            if error.hint and str(context.log) in error.hint:
                raise
            hint = f"{error.hint}        log: {context.log}" if error.hint else f"log: {context.log}"
            raise type(error)(error.what, where=error.where, hint=hint) from error
        for warning in built.value["warnings"]:
            context.note(f"{self.package}: {warning}")
        context.note(f"built in {built.seconds:.1f} s with {built.peak_rss_bytes / 1e6:.0f} MB of memory")
        self._write_receipt(built.value, graph, workdir)

    def _write_receipt(self, built: Mapping[str, Any], graph: Artifact, workdir: Path) -> None:
        from optimizer.graph.engine_receipt import engine_receipt

        receipt = engine_receipt(graph.file, built["layers"])
        _check_delivered(receipt, self.precision, self.at_least, self.name)
        document = {
            "schema_version": 1,
            "package": built["package"],
            "version": built["version"],
            "compute_capabilities": built["compute_capabilities"],
            "inputs": built["inputs"],
            "outputs": built["outputs"],
            "profile": {axis: dict(zip(("min", "opt", "max"), s, strict=True)) for axis, s in self.profile.items()},
            "onnx_sha256": graph.digest,
            # Read back from the builder's layer table.
            "precision": receipt.shares,
            "precision_notes": list(receipt.notes),
            "executed": dict(receipt.precisions),
            "layers": built["layers"],
        }
        (workdir / RECEIPT).write_text(json.dumps(document, indent=1), encoding="utf-8")

    def open_parent(self, sources: Mapping[str, Artifact]) -> Session:
        """What a GPU would compute of the graph, on this CPU: onnxruntime runs float16 in float32."""
        from optimizer.judge import open_judge

        return open_judge(sources["graph"].file)[0]

    def open_output(self, output: Artifact) -> Session | str:
        """Open the engine on the first GPU, or say what is missing."""
        from optimizer.runtime.cuda import Cuda
        from optimizer.runtime.tensorrt import TensorRTSession, missing

        absent = missing(self.package, "cuda:0")
        if absent:
            return absent
        built_for = json.loads((output.path / RECEIPT).read_text(encoding="utf-8"))["compute_capabilities"]
        gpu = Cuda(0)
        here = gpu.compute_capability
        gpu.close()
        if built_for and here not in built_for:
            return f"the engine is for compute capability {', '.join(built_for)}, and the GPU here has {here}"
        return TensorRTSession(output.file, package=self.package, device="cuda:0")


def _check_delivered(receipt: Receipt, precision: str, at_least: float, where: str) -> None:
    """Refuse an engine that computes less in the variant's precision than its recipe accepts, or nothing at all.

    Raises: StageError, naming both shares and what the layer table says.
    """
    found = receipt.shares.get(precision, 0.0)
    if at_least > 0.0 and (found == 0.0 or found < at_least):
        raise StageError(
            f"the engine computes {found:.1%} of the multiply-accumulates in {precision}, at_least asks for "
            f"{at_least:.1%}: {'; '.join(receipt.notes[:3]) or 'its layer table shows other types'}",
            where=where,
            hint="Leave this target out of the variant (targets:), or accept less with at_least:.",
        )


class EngineTensorRT(Engine):
    """An engine of TensorRT, for the GPU and the driver of this machine."""

    tools: ClassVar[tuple[str, ...]] = ("tensorrt",)
    device_bound: ClassVar[bool] = True

    package: Literal["tensorrt"] = Field("tensorrt", json_schema_extra={"derived": True})

    @property
    def capabilities(self) -> tuple[str, ...]:
        """None: the GPU present decides."""
        return ()


class EngineRtx(Engine):
    """An engine of TensorRT-RTX, built without a GPU: one file holds every listed compute capability."""

    tools: ClassVar[tuple[str, ...]] = ("tensorrt_rtx",)

    package: Literal["tensorrt_rtx"] = Field("tensorrt_rtx", json_schema_extra={"derived": True})
    compute_capabilities: tuple[Capability, ...] = Field(
        (), description="e.g. ['8.6', '8.9']; default: all that the library lists from 8.0 (Ampere) on"
    )

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities asked for, each once, in rising order."""
        return tuple(sorted(set(self.compute_capabilities), key=float))
