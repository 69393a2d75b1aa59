"""Build an engine: TensorRT on the GPU that will execute it, TensorRT-RTX ahead of time for listed GPUs."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizer.errors import OptimizerError, StageError
from optimizer.graph.builder_fields import Range, TimingCache
from optimizer.graph.builder_options import OPTIONS, is_given
from optimizer.isolated import IsolatedResult, OutOfMemoryError, OutOfTimeError, run_isolated
from optimizer.stage import Stage, StageContext, Tolerance
from optimizer.types import Artifact, Format

if TYPE_CHECKING:
    from optimizer.graph.receipt import Receipt
    from optimizer.runtime.session import Session

RECEIPT = "engine.json"  # beside the plan: what is known of it without a GPU

CHILD = "optimizer.graph.build_engine"

Capability = Annotated[str, Field(pattern=r"^(\d+\.\d|current)$")]


class Engine(Stage, ABC):
    """What both packages share; precision stands in the graph, and the network is strongly typed."""

    name: ClassVar[str] = "engine"
    version: ClassVar[int] = 6
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

    profiles: tuple[dict[str, Range], ...] = Field(
        (), description="several optimization profiles, axis -> min, opt, max; default: the one of the recipe"
    )
    workspace: int | None = Field(None, gt=0, description="bytes of GPU memory for kernels; default: the library's")
    builder_optimization_level: int | None = Field(None, ge=0, le=5, description="0 to 5; default: the library's, 3")
    timing_cache: TimingCache | None = Field(None, description="{path: FILE, locked: true} builds with known times")
    hardware_compatibility_level: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
        "none", description="other GPUs that shall execute the engine"
    )
    version_compatible: bool = Field(False, description="later releases of the library shall execute the engine too")
    weight_streaming: bool = Field(False, description="weights may stay in the host's memory")
    strip_plan: bool = Field(False, description="leave the weights out of the plan; they come back from the ONNX file")
    refit: bool | Literal["identical"] = Field(
        False, description="true: weights can be replaced; identical: only by the same ones, at full speed"
    )
    sparse_weights: bool = Field(False, description="use kernels for weights of the 2:4 pattern where they have it")
    tf32: bool = Field(True, description="let float32 products round their inputs to TF32")
    memory_limit: int | None = Field(None, gt=0, description="bytes of host memory that the build may take")
    time_limit: float = Field(3600.0, gt=0, description="seconds that the build may take")

    @property
    @abstractmethod
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities asked for; none where the GPU present decides, or the default is wanted."""

    @property
    def options(self) -> dict[str, Any]:
        """The builder's options that were given, as plain JSON."""
        dumped = self.model_dump(mode="json", include={option.name for option in OPTIONS})
        return {name: value for name, value in dumped.items() if is_given(name, value)}

    @cached_property
    def timing_cache_sha256(self) -> str | None:
        """The digest of the timing cache when the key was made: the build refuses another one."""
        return self.timing_cache.sha256 if self.timing_cache is not None else None

    def key_document(
        self, sources: Mapping[str, str], versions: Mapping[str, str], device: str | None, checks: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Return what the key is the sha256 of: a timing cache by its content, and no limit of time.

        The limit of time decides whether there is an output, not which; memory that is refused can make a builder
        choose another kernel, so that limit stands in the key.
        """
        document = super().key_document(sources, versions, device, checks)
        parameters = {name: value for name, value in document["parameters"].items() if name != "time_limit"}
        if self.timing_cache is not None:
            parameters["timing_cache"] = {"sha256": self.timing_cache_sha256, "locked": self.timing_cache.locked}
        return {**document, "parameters": parameters}

    def run(self, sources: Mapping[str, Artifact], workdir: Path, context: StageContext) -> None:
        """Write engine.plan and engine.json; for a stripped plan the graph, whose weights it lacks; a timing cache.

        Raises: StageError naming every axis without a profile, every node that the parser refuses, or why nothing was
        built; MissingToolError without the package, or without the GPU that `tensorrt` builds on.
        """
        graph = sources["graph"]
        where = f"stage '{self.name}' failed on {graph.file.name} ({graph.digest[:8]})"
        arguments: dict[str, Any] = {
            "source": str(graph.file),
            "plan": str(workdir / self.main_file),
            "package": self.package,
            "profile": {axis: list(sizes) for axis, sizes in self.profile.items()},
            "compute_capabilities": list(self.capabilities),
            "options": self.options,
        }
        if self.timing_cache is not None:
            arguments["options"]["timing_cache"]["sha256"] = self.timing_cache_sha256
        built = self._build(arguments, context.log, where)
        for warning in built.value["warnings"]:
            context.note(f"{self.package}: {warning}")
        retry = built.value["retry"]
        if retry is not None:
            first, second = retry["workspace"]
            context.note(
                f"{self.package} {retry['reason']}; built again with a workspace of {second} bytes, not {first}"
            )
        context.note(f"built in {built.seconds:.1f} s with {built.peak_rss_bytes / 1e6:.0f} MB of memory")
        if self.strip_plan:
            shutil.copytree(graph.path, workdir, dirs_exist_ok=True)
        self._write_receipt(built.value, graph, workdir, context.note)

    def _build(self, arguments: Mapping[str, Any], log: Path, where: str) -> IsolatedResult:
        """Build in a child process; what ends it is one error that names the log, and the option that gives more."""
        try:
            return run_isolated(
                f"{CHILD}:build",
                arguments,
                log=log,
                what=where,
                memory_bytes=self.memory_limit,
                timeout_s=self.time_limit,
            )
        except OutOfTimeError as error:
            more = f"Raise targets.{self.package}.time_limit, {self.time_limit:g} s now.\n"
            raise StageError(error.what, where=error.where, hint=f"{more}{error.hint}") from error
        except OutOfMemoryError as error:
            more = f"Raise targets.{self.package}.memory_limit, {self.memory_limit} bytes now.\n"
            hint = f"{more if self.memory_limit else ''}{error.hint}"
            raise StageError(error.what, where=error.where, hint=hint) from error
        except OptimizerError as error:
            if error.hint and str(log) in error.hint:
                raise
            hint = f"{error.hint}        log: {log}" if error.hint else f"log: {log}"
            raise type(error)(error.what, where=error.where, hint=hint) from error

    def _write_receipt(
        self, built: Mapping[str, Any], graph: Artifact, workdir: Path, note: Callable[[str], None]
    ) -> None:
        import onnx

        from optimizer.graph.engine_layers import joined, reformats
        from optimizer.graph.engine_receipt import engine_receipt, merge
        from optimizer.graph.optimization_profiles import named
        from optimizer.graph.trtexec import trtexec

        kernels = _kernels(built, workdir / self.main_file, note)
        model = onnx.load(graph.file, load_external_data=False)
        receipts = {capability: engine_receipt(model, rows) for capability, rows in built["tables"].items()}
        # TensorRT, which builds beside its GPU alone, logs the types of a layer in another form: its inspector counts.
        receipt = merge(receipts, self.precision) if receipts else engine_receipt(model, kernels)
        _check_delivered(receipt, self.precision, self.at_least, self.name)
        usual = {axis: sizes[1] for axis, sizes in self.profile.items()}
        layers = joined(kernels, model, usual)
        # The file by its name alone: where it lay says nothing elsewhere.
        cache = self.timing_cache and {"path": Path(self.timing_cache.path).name, "locked": self.timing_cache.locked}
        document = {
            "schema_version": 1,
            "package": built["package"],
            "version": built["version"],
            "compute_capabilities": built["compute_capabilities"],
            "inputs": built["inputs"],
            "outputs": built["outputs"],
            "profile": named(self.profile),  # what the profiles cover together
            "profiles": built["profiles"],
            "options": built["options"],  # as the library holds them, its defaults included
            "options_given": self.options | ({"timing_cache": cache} if cache else {}),
            "retry": built["retry"],
            "timing_cache": built["timing_cache"],
            "onnx_sha256": graph.digest,
            # Read back from the builder's layer table, or of tensorrt from the engine inspector.
            "precision": receipt.shares,
            "precision_notes": list(receipt.notes),
            "executed": dict(receipt.precisions),
            "compute_capability_receipts": {capability: r.shares for capability, r in receipts.items()},
            "layers": layers,
            "reformats": reformats(layers),
        }
        document["trtexec"] = trtexec(document)
        (workdir / RECEIPT).write_text(json.dumps(document, indent=1), encoding="utf-8")

    def open_parent(self, sources: Mapping[str, Artifact]) -> Session:
        """What a GPU would compute of the graph, on this CPU: onnxruntime runs float16 in float32."""
        from optimizer.judge import open_judge

        return open_judge(sources["graph"].file)[0]

    def open_output(self, output: Artifact) -> Session | str:
        """Open the engine on the first GPU, or say what is missing."""
        from optimizer.runtime.tensorrt import TensorRTSession, missing

        absent = missing(self.package, "cuda:0")
        if absent:
            return absent
        built_for = json.loads((output.path / RECEIPT).read_text(encoding="utf-8"))["compute_capabilities"]
        here = _capability()
        if built_for and here not in built_for:
            return f"the engine is for compute capability {', '.join(built_for)}, and the GPU here has {here}"
        return TensorRTSession(output.file, package=self.package, device="cuda:0")


def _kernels(built: Mapping[str, Any], plan: Path, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the engine's layers: by the engine inspector where a GPU opens the plan, else by the builder's log."""
    from optimizer.runtime.tensorrt import missing

    built_for = built["compute_capabilities"]
    if missing(built["package"], "cuda:0") is not None or (built_for and _capability() not in built_for):
        return list(built["layers"])
    from optimizer.graph.engine_inspector import read_plan

    try:
        return read_plan(plan, built["package"], trusted=True)
    except StageError as error:
        if not built["tables"]:  # `tensorrt` has nothing else
            raise
        note(f"layers by the builder's log, because the inspector said: {error.what}")
        return list(built["layers"])


def _capability() -> str:
    """Return the compute capability of the first GPU."""
    from optimizer.runtime.cuda import Cuda

    gpu = Cuda(0)
    here = gpu.compute_capability
    gpu.close()
    return here


def _check_delivered(receipt: Receipt, precision: str, at_least: float, where: str) -> None:
    """Refuse an engine that computes less in the variant's precision than its recipe accepts, or nothing at all.

    Raises: StageError, naming both shares and what the layer table says.
    """
    found = receipt.shares.get(precision, 0.0)
    if found < at_least:
        raise StageError(
            f"the engine computes {found:.1%} of the multiply-accumulates in {precision}, at_least asks for "
            f"{at_least:.1%}: {'; '.join(receipt.notes[:3]) or 'its layer table shows other types'}",
            where=where,
            hint="Leave this target out of the variant (targets:), or accept less with at_least:.",
        )


class EngineTensorRT(Engine):
    """An engine of TensorRT, for the GPU and the driver of this machine."""

    tools: ClassVar[tuple[str, ...]] = ("tensorrt",)
    preloads: ClassVar[tuple[str, ...]] = (CHILD, "tensorrt")
    device_bound: ClassVar[bool] = True

    package: Literal["tensorrt"] = Field("tensorrt", json_schema_extra={"derived": True})

    @property
    def capabilities(self) -> tuple[str, ...]:
        """None: the GPU present decides."""
        return ()


class EngineRtx(Engine):
    """An engine of TensorRT-RTX, built without a GPU: one file holds every listed compute capability."""

    tools: ClassVar[tuple[str, ...]] = ("tensorrt_rtx",)
    preloads: ClassVar[tuple[str, ...]] = (CHILD, "tensorrt_rtx")

    package: Literal["tensorrt_rtx"] = Field("tensorrt_rtx", json_schema_extra={"derived": True})
    compute_capabilities: tuple[Capability, ...] = Field(
        (), description="e.g. ['8.6', '8.9'], or [current], the GPU here; default: all that are listed from 8.0 on"
    )

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities asked for, each once, in rising order."""
        return tuple(sorted(set(self.compute_capabilities), key=float))
